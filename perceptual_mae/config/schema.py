"""The sections of a run's configuration. Defaults are the paper's (LS-GAN-P, ViT-B/16, 224 px) unless a line says so.

Options of data sets, maskings, the generator, discriminators and loss terms are not listed here: they are the
keyword-only parameters of those classes and functions.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from discriminators import AUGMENTATIONS, DISCRIMINATORS
from perceptual_mae.config.entries import (
    LossesSection,
    PenaltiesSection,
    describe_penalties,
    describe_terms,
    read_penalties,
    read_terms,
)
from perceptual_mae.config.from_signature import Choice, Options, Reading, Section, choice, derive, options_of
from perceptual_mae.config.layers import BASE
from perceptual_mae.data import DATASETS
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import ImageFormat, Size
from perceptual_mae.masking import MASKINGS, watches_attention
from perceptual_mae.schedules import Ramp

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


DEFAULT_AUGMENTATION = "ada"
"""Its kind where `augment` names none."""

_DATA = choice(DataSection, DATASETS, "data set", BASE["data"]["kind"])
_MASKING = choice(MaskingSection, MASKINGS, "masking", BASE["masking"]["kind"])
_DISCRIMINATOR = choice(DiscriminatorSection, DISCRIMINATORS, "discriminator", BASE["discriminator"]["kind"])
_GENERATOR = options_of(GeneratorSection, MaskedAutoencoder)
_AUGMENT = choice(AugmentSection, AUGMENTATIONS, "augmentation", DEFAULT_AUGMENTATION)
_LOSSES = Reading(read_terms, describe_terms)
_PENALTIES = Reading(read_penalties, describe_penalties)
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
