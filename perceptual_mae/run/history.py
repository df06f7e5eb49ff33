"""What was changed in a run after its start, in its environment.json: by whom it was asked for, from which step on."""

import json
from pathlib import Path
from typing import Any

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.files import write_json
from perceptual_mae.run.folder import CONFIG, changes, read_config

ENVIRONMENT, HISTORY = "environment.json", "history"


def add_to_history(folder: Path, step: int, what: dict[str, Any]) -> None:
    """Append an entry to a run's history; one that is there already (the run was cut off since) is not repeated."""
    path = folder / ENVIRONMENT
    content = json.loads(path.read_text()) if path.exists() else {}
    entry = {"step": step, **what}
    if entry not in content.get(HISTORY, []):
        write_json(path, content | {HISTORY: [*content.get(HISTORY, []), entry]})


def add_to_environment(folder: Path, key: str, content: dict[str, Any]) -> None:
    """Set one key of a run's environment.json."""
    path = folder / ENVIRONMENT
    write_json(path, json.loads(path.read_text()) | {key: content})


def add_changes(folder: Path, config: RunConfig, step: int) -> None:
    """Record the keys that a resumed run changes, with their values before and after."""
    if (folder / CONFIG).exists() and (changed := changes(read_config(folder), config)):
        add_to_history(folder, step, {"changed": changed})
