"""How an encoder is transferred: recipes of `configs/transfer`, overrides, and the sections that all of them share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import Field
from pydantic import ValidationError as PydanticError

from perceptual_mae.config import layers
from perceptual_mae.config.errors import mistakes_of
from perceptual_mae.config.from_signature import Section
from perceptual_mae.config.mistake import line_of
from perceptual_mae.config.own_kinds import EVERYTHING
from perceptual_mae.errors import UserError, did_you_mean

Command = Literal["segment", "detect"]
Config = TypeVar("Config", bound=Section)

Positive = Annotated[float, Field(gt=0, le=1000)]
NotNegative = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Side = Annotated[int, Field(ge=8, le=8192)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]


class OptimizerSection(Section):
    """AdamW, whose rate shrinks from the head down.

    Options:
        lr: peak learning rate of the head and the encoder's last layer [ours]
        betas: decay rates of AdamW's first and second moment [BEiT]
        weight_decay: decoupled weight decay of all weights but biases, norms, tokens and positions [BEiT]
        layer_decay: factor of the learning rate from one layer of the encoder to the one below [BEiT]
        clip_norm: largest norm of the gradient; null: not clipped [none]
    """

    lr: Positive = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NotNegative = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class ScheduleSection(Section):
    """How long, and the learning rate along it.

    Options:
        kind: poly and cosine fall to floor, multi_step is multiplied by gamma at each milestone [BEiT]
        steps: optimiser steps [ours]
        warmup_steps: steps over which the rate rises linearly [BEiT]
        warmup_from: share of the rate that the warm-up begins with [BEiT]
        power: exponent of poly; 1 is a straight line [BEiT]
        milestones: steps at which multi_step multiplies the rate [none]
        gamma: factor of multi_step [ours]
        floor: learning rate at the end of poly and cosine [BEiT]
    """

    kind: Literal["poly", "multi_step", "cosine"] = "poly"
    steps: Steps = 10_000
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    warmup_from: Share = 0.0
    power: Positive = 1.0
    milestones: tuple[Steps, ...] = ()
    gamma: Positive = 0.1
    floor: NotNegative = 0.0

    def at(self, lr: float) -> "Schedule":
        """Return the schedule with this peak."""
        return Schedule(self, lr)


@dataclass(frozen=True)
class Schedule:
    """Learning rates of a training: a linear warm-up from a share of `lr`, then poly, steps or half a cosine.

    poly falls to `floor` as (1 - step / steps) ** power over the whole training; multi_step multiplies by gamma at each
    of the milestones, steps; cosine falls to `floor` from the end of the warm-up on.
    """

    section: ScheduleSection
    lr: float

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.section.steps

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, which count from 0."""
        section, rate = self.section, self._without_warmup(step)
        if step < section.warmup_steps:
            rate *= section.warmup_from + (1 - section.warmup_from) * step / section.warmup_steps
        return rate

    def _without_warmup(self, step: int) -> float:
        section = self.section
        if section.kind == "multi_step":
            return self.lr * math.pow(section.gamma, sum(step >= milestone for milestone in section.milestones))
        if section.kind == "poly":
            share = math.pow(1 - min(1.0, step / section.steps), section.power)
        else:
            gone = max(0, step - section.warmup_steps) / max(1, section.steps - section.warmup_steps)
            share = 0.5 * (1 + math.cos(math.pi * min(1.0, gone)))
        return section.floor + (self.lr - section.floor) * share


class TrainingSection(Section):
    """How a transfer trains.

    Options:
        batch_size: images of one optimiser step, over all processes and micro-batches [ours]
        accumulation: micro-batches of a step; more need less memory [ours]
        precision: autocast: no (float32), bf16, fp16, or auto: bf16 where the device computes in it, else no [ours]
        workers: processes that decode images; 0: the main process does [ours]
        log_every: steps from one line of metrics to the next [ours]
        score_every: steps from one score of held-out images to the next; null: at the end alone [ours]
    """

    batch_size: BatchSize = 16
    accumulation: BatchSize = 1
    precision: Literal["no", "bf16", "fp16", "auto"] = "auto"
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    log_every: Steps = 50
    score_every: Steps | None = None


class TransferConfig(Protocol):
    """A recipe, read: the sections that all of them have."""

    @property
    def optimizer(self) -> OptimizerSection: ...

    @property
    def schedule(self) -> ScheduleSection: ...

    @property
    def training(self) -> TrainingSection: ...

    def model_dump(self, *, mode: str, by_alias: bool | None) -> dict[str, Any]: ...


def list_transfer_recipes(command: Command) -> list[layers.Shipped]:
    """List the shipped recipes of a command."""
    return layers.list_layers("transfer", command)


def read_recipe(command: Command, model: type[Config], arguments: Sequence[str]) -> tuple[Config, str]:
    """Return the configuration that a recipe (a shipped name or a YAML file) and `key=value` overrides make.

    Its name comes with it: that of the recipe. Data sets of one's own that it names, `package.module:function`, are
    imported, for the user typed it. Raises UserError of one line a mistake.
    """
    names = [argument for argument in arguments if "=" not in argument]
    shipped = {recipe.name: recipe.path for recipe in list_transfer_recipes(command)}
    if len(names) != 1:
        problem = f"{' '.join(names)}: are {len(names)} recipes" if names else "name a recipe"
        raise UserError(f"{problem}; choose one of {', '.join(shipped)}, or a YAML file, then key=value")
    merged = layers.Merged(values={})
    merged.merge(layers.read_yaml(_find(names[0], shipped)), names[0])
    for argument in arguments:
        if "=" in argument:
            merged.override(argument)
    try:
        config = model.model_validate(merged.values, context=EVERYTHING)
    except PydanticError as error:
        mistakes = mistakes_of(model, error, merged.values)
        raise UserError("\n".join(line_of(each, merged.origins, names[0], {}) for each in mistakes)) from error
    return config, Path(names[0]).stem


def _find(name: str, shipped: dict[str, Path]) -> Path:
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return path
    if name not in shipped:
        hint = did_you_mean(name, shipped)
        raise UserError(f"unknown recipe {name!r}; choose from: {', '.join(shipped)}, or give a .yaml file{hint}")
    return shipped[name]
