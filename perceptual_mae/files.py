"""Files that are written whole or not at all, and the user's cache folder."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a small file beside and rename it, so that no reader ever sees half of it."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text)
    os.replace(beside, path)


def user_cache() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
