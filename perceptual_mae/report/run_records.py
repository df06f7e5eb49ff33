"""The records of a run's folder, read for a comparison; no network is loaded."""

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.errors import UserError
from perceptual_mae.run import checkpoint
from perceptual_mae.run.folder import distinct_names, read_config
from perceptual_mae.run.run import read_object

_SPEED = re.compile(rb'"images_per_second": *([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)')
"""In lines of metrics.jsonl: other keys of long ones need not be read."""


@dataclass(frozen=True)
class RunRecord:
    """One run: its configuration, how far it came, its summary (None while unfinished) and its scores by file stem."""

    name: str
    path: Path
    config: RunConfig
    step: int
    images_seen: int
    training_images: int | None
    summary: dict[str, Any] | None
    scores: dict[str, dict[str, Any]]
    images_per_second: float | None
    environment: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return self.config.training.seed


def read_run_records(paths: list[Path]) -> list[RunRecord]:
    """Read run folders; raises UserError for what is none and for a folder that is named twice."""
    real = [path.resolve() for path in paths]
    for path, where in zip(paths, real, strict=True):
        if real.count(where) > 1:
            raise UserError(f"{path}: is named twice; name each run once")
    names = distinct_names(paths)
    return [read_run_record(path, name) for path, name in zip(paths, names, strict=True)]


def read_run_record(path: Path, name: str, speeds: Sequence[float] | None = None) -> RunRecord:
    """Read one run folder. Scores of another step than the run's last are left out, with a note.

    speeds: images/s of metrics.jsonl where they have been read; None: they are read here.
    """
    if path.parent.name == "checkpoints":
        raise UserError(f"{path}: is a checkpoint; what is compared stands in its run folder, {path.parent.parent}")
    config, notes = read_config(path), list[str]()
    metadata = _last_metadata(path)
    summary = read_object(path / "summary.json")
    if summary is not None and metadata is not None and metadata["step"] > summary["steps"]:
        notes.append(f"{path}: went on after its summary; repeat its command to finish it")
        summary = None
    elif summary is None:
        notes.append(f"{path}: is unfinished; repeat its command to finish it")
    if summary is None and metadata is None:
        raise UserError(f"{path}: has neither a summary nor a whole checkpoint yet; let the run go on")
    environment = read_object(path / "environment.json") or {}
    if branched := environment.get("branched_from"):
        changed = ", ".join(f"{key} {before} -> {after}" for key, (before, after) in branched["changed"].items())
        notes.append(f"{path}: branched from {branched['path']} with {changed or 'the same values'}")
    last = {"step": summary["steps"], "images_seen": summary["images_seen"]} if summary else metadata or {}
    scores = {}
    for file in sorted((path / "evaluation").glob("*.json")):
        report = _read_json(file)
        if not isinstance(report, dict) or not isinstance(report.get("scores"), dict):
            continue  # somebody else's
        if report.get("step", last["step"]) != last["step"]:
            notes.append(f"{file}: is of step {report['step']}, the run has taken {last['step']}; make it again")
            continue
        scores[file.stem] = report
    return RunRecord(
        name,
        path,
        config,
        last["step"],
        last["images_seen"],
        (metadata or {}).get("training_images"),
        summary,
        scores,
        _median(_logged_speeds(path / "metrics.jsonl") if speeds is None else speeds),
        environment,
        notes,
    )


def _last_metadata(path: Path) -> dict[str, Any] | None:
    """Return the metadata of the newest checkpoint whose metadata is whole; tensors are not read."""
    for saved in reversed(checkpoint.checkpoints(path / "checkpoints")):
        try:
            return checkpoint.load_metadata(saved)
        except (OSError, ValueError):
            continue
    return None


def _read_json(path: Path) -> Any:
    """Return what a JSON file holds, or None where there is none; raises UserError where it is broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); remove it or make it again") from error


def _logged_speeds(path: Path) -> list[float]:
    """Return the logged images/s; a last line that is being written counts not."""
    lines = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [float(speed) for speed in _SPEED.findall(lines)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
