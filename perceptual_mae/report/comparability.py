"""Whether runs compare: the same budget, data and preprocessing, scored on the same images under the same masks."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptual_mae.config.build import final_ratio
from perceptual_mae.config.layers import flatten
from perceptual_mae.data import DATASETS, FOLDER_KINDS
from perceptual_mae.errors import UserError
from perceptual_mae.report.run_records import RunRecord

TRAINING, SUMMARY = "training", "summary"
"""Places of conditions that concern every score, and those of summary.json; other places are stems of score files."""

NOT_DATA = ("workers", "download", "cache", "shard_cache")
"""Keys of the data that change no image."""

STANDS_ON = (
    *("data", "split", "limit", "test_limit", "train_images", "test_images", "num_images", "unreadable_images"),
    *("classes", "transform", "mask", "protocol", "seeds", "optimizer", "held_out", "epochs", "batch_size"),
    *("augmentation", "temperature", "recipe", "fraction", "from_scratch", "frozen"),
)
"""What must agree in two files of scores of the same name."""

NAMED = 3
"""So many runs of one value are named, then counted."""


@dataclass(frozen=True)
class Difference:
    """A fact in which runs differ: where it concerns scores, its key, and the runs' names by value."""

    place: str
    key: str
    runs: dict[str, list[str]]

    def __str__(self) -> str:
        return f"{self.key}: " + ", ".join(f"{value} ({_names(runs)})" for value, runs in self.runs.items())


def conditions_of(record: RunRecord) -> dict[tuple[str, str], str]:
    """Return what a run's scores stand on, in words, by place and key."""
    config, section = record.config, record.config.data
    conditions: dict[tuple[str, str], Any] = {(TRAINING, "images seen"): record.images_seen}
    if record.training_images is not None:
        conditions[TRAINING, "training images"] = record.training_images
    for key, value in flatten(section.model_dump(mode="json", by_alias=True, exclude=set(NOT_DATA))):
        if key != "root":
            conditions[TRAINING, f"data.{key}"] = value
    root = section.model_dump().get("root")
    if root is not None and (section.kind in FOLDER_KINDS or section.kind not in DATASETS):
        conditions[TRAINING, "data.root"] = os.path.realpath(Path(str(root)).expanduser())
    conditions[TRAINING, "generator.init_from"] = config.generator.init_from
    discriminator = config.discriminator
    conditions[TRAINING, "discriminator.init_from"] = None if discriminator is None else discriminator.init_from
    conditions[TRAINING, "masking.kind"] = config.masking.kind
    for key, value in config.masking.options().items():
        conditions[TRAINING, f"masking.{key}"] = value
    if record.summary is None:
        conditions[SUMMARY, "masking.ratio (at the end)"] = final_ratio(config.masking)
    else:
        keys = {"masking.ratio (at the end)": "ratio", "evaluation.seed": "mask_seed", "evaluation.split": "split"}
        conditions |= {(SUMMARY, key): record.summary[name] for key, name in keys.items()}
        conditions[SUMMARY, "evaluation.limit"] = record.summary["num_images"]
    for stem, report in record.scores.items():
        for name in STANDS_ON:
            if name in report:
                leaves = flatten(report[name], name) if isinstance(report[name], dict) else [(name, report[name])]
                conditions |= {(stem, f"evaluation/{stem}.json, {key}"): value for key, value in leaves}
    return {key: _in_words(value) for key, value in conditions.items()}


def conflict(conditions: Mapping[tuple[str, str], str], others: Mapping[tuple[str, str], str]) -> bool:
    """Tell whether two runs differ in a fact that both have."""
    return any(others.get(key, value) != value for key, value in conditions.items())


def find_differences(records: Sequence[RunRecord]) -> list[Difference]:
    """List the conditions in which runs differ; other kinds of data differ in their kind alone."""
    by_run = {record.name: conditions_of(record) for record in records}
    kinds = {conditions[TRAINING, "data.kind"] for conditions in by_run.values()}
    differences = []
    for place, key in {key: None for conditions in by_run.values() for key in conditions}:
        runs: dict[str, list[str]] = {}
        for name, conditions in by_run.items():
            if (place, key) in conditions:
                runs.setdefault(conditions[place, key], []).append(name)
        if len(runs) > 1 and (len(kinds) == 1 or not key.startswith("data.") or key == "data.kind"):
            differences.append(Difference(place, key, runs))
    return differences


def refuse(differences: Sequence[Difference], repeated: Sequence[str]) -> None:
    """Raise UserError with a line for each difference and each repeated run."""
    lines = [f"{each}; compare runs that agree, or mark what differs with --anyway" for each in differences]
    lines += [f"{each}; give one of them, or --anyway for a row each" for each in repeated]
    if lines:
        raise UserError("\n".join(lines))


def _names(runs: Sequence[str]) -> str:
    more = len(runs) - NAMED
    return ", ".join(runs[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _in_words(value: Any) -> str:
    return "none" if value is None else str(value)
