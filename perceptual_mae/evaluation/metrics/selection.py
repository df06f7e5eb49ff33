"""Which scores are computed: those asked for, less those that cannot be had here, each with its reason."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.evaluation.accumulators import Accumulator
from perceptual_mae.evaluation.metrics import METRICS
from perceptual_mae.evaluation.metrics.protocol import (
    ImageMetric,
    Measure,
    Metric,
    SetMetric,
    Setting,
    UnavailableError,
)
from perceptual_mae.pretrained_weights.registry import find, missing
from perceptual_mae.run.folder import version_of

GROUPS = ("all", "cheap")


@dataclass
class Chosen:
    """Scores ready to be computed. `networks` says which files of weights stand behind them."""

    measures: dict[str, Measure] = field(default_factory=dict)
    accumulators: list[Accumulator] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    networks: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)


def names_of(text: str | None, table: Mapping[str, Metric] = METRICS) -> list[str]:
    """Return the names of a comma list, in the table's order; `all` and `cheap` (without networks) stand for many.

    Raises UserError for names that the table lacks.
    """
    words = [word.strip() for word in (text or "all").split(",")]
    for word in words:
        if word not in table and word not in GROUPS:
            raise UserError(
                f"--metrics: there is no {word!r}{did_you_mean(word, table)}; choose from: {', '.join(table)}, "
                "or all, or cheap (without networks)"
            )
    asked = {"all": set(table), "cheap": {name for name, line in table.items() if not line.network}}
    wanted = {name for word in words for name in asked.get(word, {word})}
    return [name for name in table if name in wanted]


def check_required(required: Sequence[str], table: Mapping[str, Metric] = METRICS) -> None:
    """Raise UserError for a required name that the table lacks."""
    for name in required:
        if name not in table:
            raise UserError(
                f"--require: there is no {name!r}{did_you_mean(name, table)}; choose from: {', '.join(table)}"
            )


def choose(
    names: Sequence[str],
    required: Sequence[str],
    setting: Setting,
    table: Mapping[str, Metric] = METRICS,
) -> Chosen:
    """Prepare the lines of these names, and of the required ones.

    A score that cannot be had is left out and its reason kept. Raises UserError where it is required, or unknown.
    """
    check_required(required, table)
    chosen, shared = Chosen(), dict[Any, list[str]]()
    wanted = [name for name in table if name in {*names, *required}]
    for name in wanted:
        line = table[name]
        if isinstance(line, SetMetric):
            shared.setdefault(line.prepare, []).append(name)
            continue
        with_files = _Files(setting)
        try:
            chosen.measures[name] = line.prepare(with_files.setting)
        except UnavailableError as reason:
            chosen.unavailable[name] = str(reason)
        else:
            _note(chosen, line, with_files)
    for prepare, group in shared.items():
        with_files = _Files(setting)
        try:
            accumulator = prepare(with_files.setting, group)
            chosen.accumulators.append(accumulator)
            chosen.unavailable |= getattr(accumulator, "unavailable", {})
        except UnavailableError as reason:
            chosen.unavailable |= dict.fromkeys(group, str(reason))
        else:
            _note(chosen, table[group[0]], with_files)
    missing = [f"{key} {reason}" for key, reason in chosen.unavailable.items() if key.partition("[")[0] in required]
    if missing:
        raise UserError(f"--require: {'; '.join(missing)}")
    return chosen


class _Files:
    """A setting that keeps the paths of the weights that are asked of it."""

    def __init__(self, setting: Setting) -> None:
        self.paths: dict[str, Path] = {}
        self.setting = replace(setting, find_weights=self._find)
        self._search = setting.find_weights

    def _find(self, name: str) -> Path:
        self.paths[name] = self._search(name)
        return self.paths[name]


def _note(chosen: Chosen, line: ImageMetric | SetMetric, files: _Files) -> None:
    chosen.versions |= {package: version_of(package) for package in line.versions}
    for name, path in files.paths.items():
        if name not in chosen.networks:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            chosen.networks[name] = {"file": path.name, "sha256": digest}


def find_weights(name: str) -> Path:
    """Return the file of a network's weights; UnavailableError says which command fetches it."""
    path = find(name)
    if path is None:
        raise UnavailableError(missing(name))
    return path
