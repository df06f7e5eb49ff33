"""The contents of a run folder: configuration, networks, metrics."""

import json
from pathlib import Path
from typing import Any

from perceptual_mae.config.build import build_generator
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.run import checkpoint
from perceptual_mae.run.folder import read_config


class Run:
    """A finished or unfinished run: its configuration, networks and metrics.

    `path` is a run folder or one checkpoint in it. With `trust_code` the classes of somebody's own that its
    configuration names are imported; without, tensors, metrics and all that this package builds itself can be had.
    Raises UserError where it is neither, or where no whole checkpoint is there.
    """

    def __init__(self, path: str | Path, *, trust_code: bool = False) -> None:
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path}: does not exist; give a run folder or a checkpoint in it")
        is_checkpoint = path.parent.name == "checkpoints" and path.name.startswith("step_")
        self.path = path.parent.parent if is_checkpoint else path
        self.config: RunConfig = read_config(self.path, trust_code=trust_code)
        groups = ["generator", *(["generator_ema"] if self.config.training.ema_kimg else [])]
        if is_checkpoint and not checkpoint.is_name(path.name):
            raise UserError(f"{path}: is not the name of a checkpoint, such as step_00001234; give one, or the run")
        if is_checkpoint and (flaw := checkpoint.corruption(path, groups)):
            raise UserError(f"{path}: is not a whole checkpoint: {flaw}; give another one, or the run's folder")
        chosen = path if is_checkpoint else checkpoint.newest(self.path / "checkpoints", groups)
        if chosen is None:
            raise UserError(f"{self.path}: holds no checkpoint yet; let the run go on until it has saved one")
        self.checkpoint: Path = chosen

    @property
    def step(self) -> int:
        """The optimiser steps taken when the checkpoint was written."""
        return int(checkpoint.load_metadata(self.checkpoint)["step"])

    @property
    def has_ema(self) -> bool:
        return checkpoint.has_group(self.checkpoint, "generator_ema")

    def generator(self, *, ema: bool | None = None) -> MaskedAutoencoder:
        """Return the generator in evaluation mode; `ema` None takes the averaged weights where there are any."""
        if ema and not self.has_ema:
            raise UserError(
                f"{self.checkpoint}: holds no averaged weights; train with training.ema_kimg or set ema=False"
            )
        name = "generator_ema" if (self.has_ema if ema is None else ema) else "generator"
        generator = build_generator(self.config.generator, self.config.data.image, self.config.training.seed)
        checkpoint.load_module(generator, checkpoint.load_tensors(self.checkpoint, name), self.checkpoint)
        return generator.eval()

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl, in order; a last line that is still being written is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [_record(line, number, path) for number, line in enumerate(lines, start=1) if line.endswith("\n")]

    def summary(self) -> dict[str, Any] | None:
        """Return summary.json, or None while the run is unfinished."""
        path = self.path / "summary.json"
        return read_object(path)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the object that a JSON file holds, or None where there is no file; raises UserError where it is broken."""
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); remove it or make it again") from error
    if not isinstance(held, dict):
        raise UserError(f"{path}: holds no JSON object; remove it or make it again")
    return held


def _record(line: str, number: int, path: Path) -> dict[str, Any]:
    """Return the record of a line of metrics.jsonl."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path}: line {number} is no JSON object; remove that line")
    return record
