"""Scalars on their way from the device to metrics.jsonl and Accelerate's trackers."""

import logging
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.errors import UserError

log = logging.getLogger(__name__)

Scalars = dict[str, float]


class Meter:
    """Keeps the scalars of the steps since the last report on the device and fetches them all at once."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, scalars: dict[str, Tensor]) -> None:
        self.steps.append((step, scalars))

    def fetch(self, accelerator: Accelerator) -> list[tuple[int, Scalars]]:
        """Return each step's scalars, averaged over processes, and start anew. This waits for the device."""
        flat = [value.float() for _, scalars in self.steps for value in scalars.values()]
        if not flat:
            return []
        values = iter(accelerator.reduce(torch.stack(flat), reduction="mean").tolist())
        fetched = [(step, {name: next(values) for name in scalars}) for step, scalars in self.steps]
        self.steps = []
        return fetched


def first_non_finite(steps: Sequence[tuple[int, Scalars]]) -> tuple[int, str] | None:
    """Return the step and the name of the first loss that is not a finite number, or None."""
    for step, scalars in steps:
        for name, value in scalars.items():
            if name.startswith(("raw/", "weighted/", "penalty/", "discriminator/loss")) and not math.isfinite(value):
                return step, name.removeprefix("raw/").removeprefix("weighted/")
    return None


def average(steps: Sequence[tuple[int, Scalars]]) -> Scalars:
    """Average each scalar over the steps that report it."""
    names = {name: None for _, scalars in steps for name in scalars}
    seen = {name: [scalars[name] for _, scalars in steps if name in scalars] for name in names}
    return {name: sum(values) / len(values) for name, values in seen.items()}


def nest(scalars: Scalars) -> dict[str, Any]:
    """Turn `a/b` names into nested mappings, as they stand in metrics.jsonl."""
    tree: dict[str, Any] = {}
    for name, value in scalars.items():
        *groups, leaf = name.split("/")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = value
    return tree


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"tracking.trackers: {name} is not installed; install it (pip install 'perceptual-mae[tracking]') "
                "or leave it out"
            )
