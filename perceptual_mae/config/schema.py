"""The sections of a run's configuration. Defaults are the paper's (LS-GAN-P, ViT-B/16, 224 px) unless a line says so.

Options of data sets, maskings, the generator, discriminators and loss terms are not listed here: they are the
keyword-only parameters of those classes and functions.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, SerializeAsAny, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue

from discriminators import AUGMENTATIONS, DISCRIMINATORS, PENALTIES
from perceptual_mae.config.errors import Mistake, RejectedError
from perceptual_mae.config.from_signature import Choice, Options, Reading, Section, choice, derive, options_of, read_as
from perceptual_mae.config.layers import BASE
from perceptual_mae.data import DATASETS
from perceptual_mae.errors import nearest
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import ImageFormat, Size
from perceptual_mae.loss_networks import LIVE, LOSS_NETWORKS, watches_discriminator
from perceptual_mae.losses import TERMS
from perceptual_mae.masking import MASKINGS, watches_attention
from perceptual_mae.schedules import Ramp, Weight, When

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class DataSection(Choice):
    """Where images come from and how they are cropped; sizes in pixels."""

    image_size: Positive | tuple[Positive, Positive] = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225)
    crop: Literal["random_resized", "center"] = "random_resized"
    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)  # MAE
    flip: Fraction = 0.5
    color_jitter: Fraction = 0.0
    grayscale: Fraction = 0.0
    eval_resize: Positive | None = None
    workers: Annotated[int, Field(ge=0)] = 2  # ours

    @property
    def size(self) -> Size:
        """Height and width of the images that enter the networks."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def image(self) -> ImageFormat:
        """Size, mean and deviation of the images that enter the networks."""
        return ImageFormat(self.size, self.mean, self.std)


class MaskingSection(Choice):
    """Which patches are hidden; `ratio` is the hidden share."""

    ratio: Annotated[float, Field(ge=0, lt=1)] | Ramp = 0.75

    @property
    def watches_attention(self) -> bool:
        """Whether masks depend on what the encoder in training looks at."""
        return watches_attention(type(self).constructor)

    @property
    def of_held_out_images(self) -> "MaskingSection":
        """This masking, or random where this one changes with the encoder: held-out images always have the same."""
        plain = derive(MaskingSection, MASKINGS["random"], "random")
        return plain.model_validate({"ratio": self.ratio}) if self.watches_attention else self


class GeneratorSection(Options):
    """Options of `MaskedAutoencoder`; those that other sections must fit are named here, their defaults are not.

    `init_from` is the section's own: a run folder, a checkpoint or an exported encoder whose weights the encoder starts
    with. A path is made absolute where it is read, so that a configuration means the same from any folder.
    """

    init_from: str | None = None

    size: str
    patch_size: int | None
    rgb_heads: bool
    norm_pix: bool

    @field_validator("init_from")
    @classmethod
    def _make_absolute(cls, path: str | None) -> str | None:
        return None if path is None else os.path.abspath(Path(path).expanduser())


class DiscriminatorSection(Choice):
    """Options of a discriminator."""


class AugmentSection(Choice):
    """What a discriminator's eyes go through."""


class PenaltySection(Options):
    """Options of one gradient penalty."""


class TermSection(Options):
    """One term of the objective: its weight, its phase, and the options of its function."""

    weight: Weight = 1.0
    when: When = "always"


class LossNetworkSection(Choice):
    """The network through which a term compares fake and real, with its options."""

    @property
    def watches_discriminator(self) -> bool:
        """Whether it is the run's discriminator, or made of it."""
        return watches_discriminator(type(self).constructor)


_NETWORK = choice(LossNetworkSection, LOSS_NETWORKS, "loss network", LIVE)
_LIVE: Any = {"kind": LIVE}


class FeatureTermSection(TermSection):
    """A term that compares what a network finds in fake and real; the paper's is the discriminator."""

    model_config = ConfigDict(validate_default=True)

    network: Annotated[SerializeAsAny[LossNetworkSection], _NETWORK] = _LIVE


class LossesSection(RootModel[dict[str, SerializeAsAny[TermSection]]]):
    """The terms of the objective by name, in the order of the file."""

    model_config = ConfigDict(frozen=True)
    names: ClassVar[Mapping[str, object]] = TERMS

    def items(self) -> Iterator[tuple[str, TermSection]]:
        return iter(self.root.items())

    def __contains__(self, name: str) -> bool:
        return name in self.root

    def __getitem__(self, name: str) -> TermSection:
        return self.root[name]

    def networks(self) -> dict[str, LossNetworkSection]:
        """Return, by term, the networks through which terms compare."""
        return {name: term.network for name, term in self.items() if isinstance(term, FeatureTermSection)}

    def discriminator_readers(self) -> list[str]:
        """Name the terms that need a discriminator: what it says, or features of it or of its copy."""
        watching = {name for name, network in self.networks().items() if network.watches_discriminator}
        return [name for name in self.root if TERMS[name].reads_logits or name in watching]


class PenaltiesSection(RootModel[dict[str, SerializeAsAny[PenaltySection]]]):
    """The gradient penalties by name."""

    model_config = ConfigDict(frozen=True)
    names: ClassVar[Mapping[str, object]] = PENALTIES

    def get(self, name: str) -> PenaltySection | None:
        return self.root.get(name)


class DiscriminatorOptimizerSection(Section):
    """Adam's settings for the discriminator; its learning rate is constant or follows the generator's schedule."""

    lr: Annotated[float, Field(gt=0)] = 1.5e-4
    betas: tuple[Decay, Decay] = (0.5, 0.999)  # ours
    schedule: Literal["constant", "follow"] = "constant"  # ours


class OptimizerSection(Section):
    """AdamW's settings for the generator: `lr` itself, or `base_lr` for every 256 images of a batch (MAE)."""

    lr: Annotated[float, Field(gt=0)] | None = None
    base_lr: Annotated[float, Field(gt=0)] | None = None
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    discriminator: DiscriminatorOptimizerSection = DiscriminatorOptimizerSection()

    @model_validator(mode="before")
    @classmethod
    def _default_to_the_papers(cls, values: Any) -> Any:
        return _fill(values, ("lr", "base_lr"), 1.5e-4)

    def learning_rate(self, batch_size: int) -> float:
        """Return the generator's peak learning rate at this effective batch size."""
        if self.base_lr is not None:
            return self.base_lr * batch_size / 256
        assert self.lr is not None
        return self.lr


class ScheduleSection(Section):
    """Warm-up, in epochs or as a share of all steps, then half a cosine down to `min_lr`."""

    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    warmup_ratio: Fraction | None = None
    min_lr: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _default_to_the_papers(cls, values: Any) -> Any:
        return _fill(values, ("warmup_epochs", "warmup_ratio"), 40.0)


class TrainingSection(Section):
    """How long and how a run trains. `batch_size`: images of one optimiser step, of all processes and micro-batches."""

    epochs: Positive = 300
    batch_size: Positive = 16
    accumulation: Positive = 1
    epoch_images: Positive | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: Seed = 0
    order: Literal["lean", "sequential"] = "lean"  # ours
    ema_kimg: Annotated[float, Field(gt=0)] | None = None
    log_every: Positive = 50
    checkpoint_every: Positive = 1
    keep_last: Positive = 2
    keep_every: Positive | None = None


class EvaluationSection(Section):
    """The held-out score during and after training: every n epochs (0: never), on `limit` images of a fixed shuffle."""

    every: Annotated[int, Field(ge=0)] = 1
    limit: Positive = 1000
    batch_size: Positive = 100
    seed: Seed = 0
    grid_images: Positive = 8
    split: Literal["val", "test"] = "test"


class TrackingSection(Section):
    """Trackers beside the run folder's own metrics.jsonl."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    project: str = "perceptual-mae"
    run_name: str | None = None


def read_terms(values: Mapping[str, Any]) -> dict[str, TermSection]:
    """Read each term with the options of its function; a number is a weight for short, null removes a term."""
    sections, mistakes = {}, list[Mistake]()
    for name, value in values.items():
        try:
            if value is not None:
                sections[name] = _read_term(name, value)
        except RejectedError as rejected:
            mistakes += [mistake.under(name) for mistake in rejected.mistakes]
    if mistakes:
        raise RejectedError(mistakes)
    return sections


def _read_term(name: str, value: object) -> TermSection:
    if isinstance(value, TermSection):
        return value
    if name not in TERMS:
        message = f"unknown loss term; choose from: {', '.join(TERMS)}"
        raise RejectedError([Mistake(("",), message, nearest(name, TERMS), unknown=name)])
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"weight": value}
    section: TermSection = read_as(_term_model(name), value)
    return section


def _term_model(name: str) -> type[TermSection]:
    return derive(FeatureTermSection if TERMS[name].reads_features else TermSection, TERMS[name].function)


def read_penalties(values: Mapping[str, Any]) -> dict[str, PenaltySection]:
    """Read each penalty with its options; null removes one."""
    sections, mistakes = {}, list[Mistake]()
    for name, value in values.items():
        try:
            if name not in PENALTIES:
                message = f"unknown penalty; choose from: {', '.join(PENALTIES)}"
                raise RejectedError([Mistake(("",), message, nearest(name, PENALTIES), unknown=name)])
            if value is not None:
                sections[name] = read_as(derive(PenaltySection, PENALTIES[name]), value)
        except RejectedError as rejected:
            mistakes += [mistake.under(name) for mistake in rejected.mistakes]
    if mistakes:
        raise RejectedError(mistakes)
    return sections


def _describe_penalties(show: Callable[[type[BaseModel]], JsonSchemaValue]) -> JsonSchemaValue:
    penalties = {name: show(derive(PenaltySection, kind)) for name, kind in PENALTIES.items()}
    return {"type": "object", "properties": penalties, "additionalProperties": False}


def _describe_terms(show: Callable[[type[BaseModel]], JsonSchemaValue]) -> JsonSchemaValue:
    short: list[JsonSchemaValue] = [{"type": "number"}, {"type": "null"}]
    terms = {name: {"anyOf": [show(_term_model(name)), *short]} for name in TERMS}
    return {"type": "object", "properties": terms, "additionalProperties": False}


_DATA = choice(DataSection, DATASETS, "data set", BASE["data"]["kind"])
_MASKING = choice(MaskingSection, MASKINGS, "masking", BASE["masking"]["kind"])
_DISCRIMINATOR = choice(DiscriminatorSection, DISCRIMINATORS, "discriminator", BASE["discriminator"]["kind"])
_GENERATOR = options_of(GeneratorSection, MaskedAutoencoder)
_AUGMENT = choice(AugmentSection, AUGMENTATIONS, "augmentation", "ada")
_LOSSES = Reading(read_terms, _describe_terms)
_PENALTIES = Reading(read_penalties, _describe_penalties)
_UNSAID: Any = {}
_BASE: Any = BASE


class RunConfig(BaseModel):
    """Everything that decides a run. Build it with `load_config` or `parse_config`, which also check that parts fit."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    data: Annotated[SerializeAsAny[DataSection], _DATA] = _BASE["data"]
    masking: Annotated[SerializeAsAny[MaskingSection], _MASKING] = _BASE["masking"]
    generator: Annotated[SerializeAsAny[GeneratorSection], _GENERATOR] = _UNSAID
    discriminator: Annotated[SerializeAsAny[DiscriminatorSection] | None, _DISCRIMINATOR] = _BASE["discriminator"]
    augment: Annotated[SerializeAsAny[AugmentSection] | None, _AUGMENT] = None
    losses: Annotated[LossesSection, _LOSSES] = _BASE["losses"]
    penalties: Annotated[PenaltiesSection, _PENALTIES] = _UNSAID
    optimizer: OptimizerSection = _UNSAID
    schedule: ScheduleSection = _UNSAID
    training: TrainingSection = _UNSAID
    evaluation: EvaluationSection = _UNSAID
    tracking: TrackingSection = _UNSAID


def _fill(values: Any, names: tuple[str, str], default: float) -> Any:
    """Give the first of two alternatives its default where neither is stated."""
    if isinstance(values, Mapping) and all(values.get(name) is None for name in names):
        return {**values, names[0]: default}
    return values
