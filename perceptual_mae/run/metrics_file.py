"""metrics.jsonl: one JSON object a log interval."""

import json
import math
import os
from pathlib import Path
from typing import Any

from perceptual_mae.files import naming, write_atomically


class MetricsFile:
    """metrics.jsonl: one object a report. Lines after the step a run resumes from belong to a lost future and go."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()
            write_atomically(path, "".join(f"{line}\n" for line in lines if _step_of(line) <= resume_step))

    def write(self, record: dict[str, Any]) -> None:
        line = memoryview(f"{json.dumps(_finite(record), allow_nan=False)}\n".encode())
        with naming(self.path), self.path.open("ab", buffering=0) as file:
            complete = file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(complete)  # no half of a line stays where the disk is full
                raise

    def flush_to_disk(self) -> None:
        """Wait until all lines are on the disk: a checkpoint that outlives the machine must not be without them."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def has_scores(self, step: int) -> bool:
        """Tell whether there is a record of scores after this step."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return any("evaluation" in record and record["step"] == step for record in map(json.loads, lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut off when the machine went down


def _finite(tree: Any) -> Any:
    """Put null where a number is not finite: JSON has no word for it."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
