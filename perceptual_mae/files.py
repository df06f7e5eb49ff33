"""Files that are written whole or not at all, and the user's cache folder."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as partial:
        partial.write_text(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of an empty file to write next to `path`, and rename it to `path` when it is complete.

    No reader ever sees half of it; where writing fails, nothing is left of it and an older `path` stays. The file may
    be read by whom the umask allows. An OSError names `path`.
    """
    with partial_file(path) as partial:
        permissions = partial.stat().st_mode & 0o777
        yield partial
        partial.chmod(permissions)  # some writers, safetensors among them, put a file of their own there
        os.replace(partial, path)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Make an empty file next to `path` for this writer alone, and remove it in the end if it is there still.

    Its name is new, so that it is nobody's file and no link of somebody's. An OSError names `path`.
    """
    with naming(path):
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError name `path` where it names no file, as that of a full disk, or the unfinished one next to it."""
    try:
        yield
    except OSError as failure:
        named = Path(os.fsdecode(failure.filename)) if isinstance(failure.filename, str | bytes) else None
        if failure.errno is None or (named and not (named.parent == path.parent and named.suffix == ".partial")):
            raise
        raise OSError(failure.errno, failure.strerror, str(path)) from failure


def user_cache() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
