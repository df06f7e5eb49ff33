"""Cost of runs: time from `pmae bench --json`, parameters counted from the configuration.

The speed that a run recorded is that of a machine with whatever else went on there; it makes no ratio.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perceptual_mae.config import build
from perceptual_mae.config.layers import flatten, merge_layers
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import count_parameters
from perceptual_mae.report.columns import Column
from perceptual_mae.report.run_records import RunRecord
from perceptual_mae.report.seed_groups import Group, Score
from perceptual_mae.report.tables import Scored, score_columns

UNIT = "stylegan2_ada_p"
"""The paper's unit of time."""

COSTS = ("generator", "discriminator", "augment", "losses", "penalties", "masking.ratio", "data.image_size")
COSTS_OF_TRAINING = ("batch_size", "accumulation", "precision", "order", "log_every", "ema_kimg")
NO_BENCH = "no time: `pmae bench LAYERS --against LAYERS --json bench.json` measures it, --bench bench.json shows it"
FREE = ("losses.feature_matching.network.weights", "losses.style.network.weights")
"""Where weights lie costs nothing."""


@dataclass(frozen=True)
class Bench:
    """Milliseconds an image by what costs time, as `pmae bench` measured them together, and where."""

    file: Path
    machine: str
    times: list[tuple[dict[str, Any], float]]

    def time_of(self, config: RunConfig) -> float | None:
        """Return the milliseconds an image of a configuration takes, or None where it was not measured."""
        wanted = costs_of(config)
        return next((time for costs, time in self.times if costs == wanted), None)


def read_bench(path: Path) -> Bench:
    """Read the file of `pmae bench --json`; raises UserError for anything else."""
    try:
        tree = json.loads(path.read_text())
        measured = [
            (each["name"], each["batch_size"], each["milliseconds"]["median"]) for each in tree["configurations"]
        ]
        machine = f"{tree['device']}, {tree['threads']} threads, {tree['rounds']} rounds"
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"--bench: {path} is no file of pmae bench --json ({error})") from error
    times = []
    for name, batch_size, milliseconds in measured:
        try:
            merged = merge_layers([*name.split(), f"training.batch_size={batch_size}"])
            config = parse_config(merged.values, merged.origins)  # a file's words, not the user's: no code is imported
        except UserError as mistake:
            raise UserError(f"--bench: {path} measured {name!r}, which cannot be read: {mistake}") from mistake
        times.append((costs_of(config), milliseconds / batch_size))
    return Bench(path, machine, times)


def costs_of(config: RunConfig) -> dict[str, Any]:
    """Return the dotted keys that decide what a step costs."""
    kept = (*COSTS, *(f"training.{name}" for name in COSTS_OF_TRAINING))
    flat = flatten(config.model_dump(mode="json", by_alias=True))
    return {k: v for k, v in flat if k not in FREE and any(k == key or k.startswith(f"{key}.") for key in kept)}


def relative_times(groups: Sequence[Group], bench: Bench) -> tuple[list[float | None], str]:
    """Return each group's time an image over that of StyleGANv2-ADA-P, or of the slowest, and whose time is 1."""
    times = [bench.time_of(group.first.config) for group in groups]
    known = [(time, group) for time, group in zip(times, groups, strict=True) if time is not None]
    if not known:
        return times, ""
    unit = next(
        ((time, group) for time, group in known if group.method and group.method.name == UNIT),
        max(known, key=lambda pair: pair[0]),
    )
    return [None if time is None else time / unit[0] for time in times], unit[1].label


def cost_of(groups: Sequence[Group], bench: Bench | None) -> tuple[list[Scored], list[str]]:
    """Return the columns of the cost, and what is to be said below them."""
    times, about = list[float | None]([None] * len(groups)), [NO_BENCH]
    if bench is not None:
        times, unit = relative_times(groups, bench)
        lacking = [group.label for group, time in zip(groups, times, strict=True) if time is None]
        about = [f"time: of an image; {unit} = 1 ({bench.machine}, {bench.file.name})"] if unit else []
        about += [f"no time: {bench.file.name} has no configuration of the cost of {label}" for label in lacking]
    machines = {
        f"{record.environment.get('device')}, {record.environment.get('cpu_cores')} cores"
        for group in groups
        for record in group.records
    }
    about.append(
        f"images/s: the runs' own median on {'; '.join(sorted(machines))}, whatever else went on there: no ratio"
    )
    sizes = [parameters(group.first.config) for group in groups]
    made: dict[Column, list[float | None]] = {
        Column("time", "time", _nowhere, "cost", "", ".2f", "epoch_time", ".2f"): times,
        Column("parameters.generator", "G, M parameters", _nowhere, "cost", "", ".2f", "parameters", ".0f"): [
            generator for generator, _ in sizes
        ],
        Column("parameters.discriminator", "D, M parameters", _nowhere, "cost", "", ".2f"): [
            discriminator_size for _, discriminator_size in sizes
        ],
    }
    scored = [
        Scored(column, [_of_configuration(group, value) for group, value in zip(groups, values, strict=True)])
        for column, values in made.items()
    ]
    speed = Column("images_per_second", "images/s", lambda record: record.images_per_second, "cost", "", ".0f")
    return [scored[0], score_columns([speed], groups)[0], *scored[1:]], about


def parameters(config: RunConfig) -> tuple[float, float | None]:
    """Return the trainable parameters of the generator and of the discriminator, in millions.

    None of a discriminator where there is none, or where it is code of somebody's own that was not imported.
    """
    section = config.discriminator if config.discriminator and config.discriminator.is_trusted else None
    with torch.device("meta"):
        generator = build.build_generator(config.generator, config.data.image, config.training.seed)
        discriminator = build.build_discriminator(section, config.data.image, config.training.seed, generator.encoder)
    weights = discriminator.parameters() if discriminator is not None else None
    return count_parameters(generator)[0] / 1e6, None if weights is None else sum(map(torch.numel, weights)) / 1e6


def _of_configuration(group: Group, value: float | None) -> Score | None:
    """Return what no seed moves: the same for all runs of a group, without a standard deviation."""
    return None if value is None else Score(value, None, {record.name: value for record in group.records})


def _nowhere(record: RunRecord) -> None:
    return None
