"""Runs that differ in nothing but their seed are one row: mean, sample std, n."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perceptual_mae.config.layers import flatten
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.report.comparability import conditions_of, conflict
from perceptual_mae.report.methods import Method, method_of
from perceptual_mae.report.run_records import RunRecord

NO_MATTER = (
    *("training.seed", "training.checkpoint_every", "training.checkpoint_minutes"),
    *("training.keep_last", "training.keep_every"),
    *("data.root", "data.workers", "data.download", "tracking", "evaluation"),
)
"""Keys that make no other method: what of them touches scores (budget, images, masks) is held by `conditions_of`."""

MOST_KEYS = 3
"""So many keys distinguish rows of one method, beyond them their runs' names."""


@dataclass(frozen=True)
class Score:
    """Mean and sample std (None for one) over runs, and each run's value by name."""

    mean: float
    std: float | None
    values: dict[str, float]

    @property
    def n(self) -> int:
        return len(self.values)

    def format(self, spec: str, std_spec: str | None = None) -> str:
        """Return the mean, and where there is one " ± " and the standard deviation."""
        return f"{self.mean:{spec}}" + (f" ± {self.std:{std_spec or spec}}" if self.std is not None else "")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"mean": self.mean, "deviation": self.std, "values": self.values, "n": self.n}


@dataclass
class Group:
    """Runs of one configuration under several seeds, and what the row is called."""

    records: list[RunRecord]
    method: Method | None
    label: str = ""

    @property
    def first(self) -> RunRecord:
        return self.records[0]

    @property
    def seeds(self) -> list[int]:
        return [record.seed for record in self.records]


def score(values: Mapping[str, float | None]) -> Score | None:
    """Summarise one score over the runs that have it (by name); None where none has."""
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    numbers = list(known.values())
    return Score(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, known)


def group_runs(records: Sequence[RunRecord]) -> tuple[list[Group], list[str]]:
    """Return the groups in the order of the runs, and a line for each run that repeats another's seed.

    Runs whose scores stand on different things are never averaged; a repeated seed is no second sample.
    """
    groups, repeated = list[Group](), list[str]()
    settings: dict[str, dict[str, Any]] = {record.name: decisive(record.config) for record in records}
    conditions = {record.name: conditions_of(record) for record in records}
    for record in records:
        alike = [
            group
            for group in groups
            if settings[group.first.name] == settings[record.name]
            and not any(conflict(conditions[record.name], conditions[other.name]) for other in group.records)
        ]
        free = [group for group in alike if record.seed not in group.seeds]
        if free:
            free[0].records.append(record)
            continue
        if alike:
            twin = next(other for other in alike[0].records if other.seed == record.seed)
            repeated.append(
                f"training.seed: {record.name} repeats {twin.name}, {record.seed} in both and all else alike"
            )
        groups.append(Group([record], method_of(record.config)))
    name_groups(groups)
    return groups, repeated


def decisive(config: RunConfig) -> dict[str, Any]:
    """Return the dotted keys that decide what a run is, its seed apart."""
    flat = flatten(config.model_dump(mode="json", by_alias=True))
    return {k: v for k, v in flat if not any(k == free or k.startswith(f"{free}.") for free in NO_MATTER)}


def name_groups(groups: Sequence[Group]) -> None:
    """Call each group by its method's title, with the keys in which groups of that title differ."""
    for group in groups:
        group.label = group.method.title if group.method else group.first.name
    for label in {group.label for group in groups}:
        alike = [group for group in groups if group.label == label]
        if len(alike) == 1:
            continue
        settings = [decisive(group.first.config) for group in alike]
        keys = [key for key in settings[0] if len({str(each.get(key)) for each in settings}) > 1]
        descriptions = [", ".join(f"{key}={each.get(key)}" for key in keys) for each in settings]
        if not keys or len(keys) > MOST_KEYS or len(set(descriptions)) < len(descriptions):
            descriptions = [group.first.name for group in alike]
        for group, words in zip(alike, descriptions, strict=True):
            group.label = f"{label} ({words})"
