"""The sections of a run's configuration. Defaults are the paper's (LS-GAN-P, ViT-B/16, 224 px) unless a line says so.

Options of data sets, maskings, networks and loss terms are the keyword-only parameters of their constructors.
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, SerializeAsAny, field_validator, model_validator

from discriminators import AUGMENTATIONS, DISCRIMINATORS, PENALTIES
from perceptual_mae.config.from_signature import (
    Choice,
    Options,
    Section,
    choice,
    derive,
    describe_fields,
    entries,
    options_of,
)
from perceptual_mae.config.layers import BASE
from perceptual_mae.data import DATASETS
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import ImageFormat, Size
from perceptual_mae.loss_networks import LIVE, LOSS_NETWORKS
from perceptual_mae.losses import TERMS
from perceptual_mae.masking import MASKINGS
from perceptual_mae.schedules import Ramp, Weight, When

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _fill(values: Any, names: tuple[str, str], default: float) -> Any:
    """Give the first of two alternatives its default where neither is stated."""
    if isinstance(values, Mapping) and all(values.get(name) is None for name in names):
        return {**values, names[0]: default}
    return values


class DataSection(Choice):
    """Where images come from and how they are cropped; sizes in pixels.

    Options:
        kind: the data set [ours]
        image_size: height and width of the images that enter the networks, one number for both [paper]
        mean: mean of each colour channel, subtracted before the encoder [MAE]
        std: standard deviation of each colour channel, divided by before the encoder [MAE]
        crop: training crops: random_resized (random place, size and aspect ratio) or center [MAE]
        crop_scale: smallest and largest share of the image's area in a random_resized crop [MAE]
        flip: probability that a training image is mirrored left to right [MAE]
        color_jitter: strength of random brightness, contrast, saturation and hue; 0 changes nothing [MAE]
        grayscale: probability that a training image loses its colours [MAE]
        eval_resize: shorter side of held-out images before the center crop; null: as large as the crop needs [none]
        workers: processes that decode training images; 0: the main process does [ours]
    """

    image_size: Positive | tuple[Positive, Positive] = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225)
    crop: Literal["random_resized", "center"] = "random_resized"
    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    flip: Fraction = 0.5
    color_jitter: Fraction = 0.0
    grayscale: Fraction = 0.0
    eval_resize: Positive | None = None
    workers: Annotated[int, Field(ge=0)] = 2

    @property
    def size(self) -> Size:
        """Height and width of the images that enter the networks."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def image(self) -> ImageFormat:
        """Size, mean and deviation of the images that enter the networks."""
        return ImageFormat(self.size, self.mean, self.std)


class MaskingSection(Choice):
    """Which patches are hidden.

    Options:
        kind: how the patches to hide are chosen [MAE]
        ratio: share of patches that is hidden, or a ramp of it over the run [MAE]
    """

    ratio: Annotated[float, Field(ge=0, lt=1)] | Ramp = 0.75

    @property
    def reads_attention(self) -> bool:
        """Whether masks depend on the attention of the encoder in training."""
        return self.asks_for("attention")

    @property
    def of_held_out_images(self) -> "MaskingSection":
        """This masking, or random where this one changes with the encoder: held-out images always have the same."""
        plain = derive(MaskingSection, MASKINGS["random"], "random")
        return plain.model_validate({"ratio": self.ratio}) if self.reads_attention else self


class GeneratorSection(Options):
    """Options of `MaskedAutoencoder`; those that other sections must fit are named here, their defaults are not.

    The path of `init_from` is made absolute where it is read, so that a configuration means the same from any folder.

    Options:
        init_from: run folder, checkpoint or exported encoder whose weights the encoder starts with; null: fresh [none]
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
    """Options of a discriminator.

    Options:
        kind: architecture of the discriminator [paper]
    """


class AugmentSection(Choice):
    """Augmentation of all images that the discriminator is shown.

    Options:
        kind: the augmentation [Training GANs with Limited Data]
    """


class PenaltySection(Options):
    """Options of one gradient penalty."""


class TermSection(Options):
    """One term of the objective: its weight, its phase, and the options of its function.

    Options:
        weight: weight in the objective: a number, a ramp, or a balanced share of L1's gradient [ours]
        when: the steps in which the term counts: always, even_epochs, odd_epochs, {from_epoch: n}, {every: n} [ours]
    """

    weight: Weight = 1.0
    when: When = "always"


class LossNetworkSection(Choice):
    """The network through which a term compares fake and real, with its options.

    Options:
        kind: the network whose features are compared [paper]
    """

    @property
    def reads_discriminator(self) -> bool:
        """Whether it is the run's discriminator, or made of it."""
        return self.asks_for("discriminator")


_NETWORK = choice(LossNetworkSection, LOSS_NETWORKS, "loss network", LIVE)
_LIVE: Any = {"kind": LIVE}


class FeatureTermSection(TermSection):
    """A term that compares features of fake and real images.

    Options:
        network: the network whose features are compared [paper]
    """

    model_config = ConfigDict(validate_default=True)

    network: Annotated[SerializeAsAny[LossNetworkSection], _NETWORK] = _LIVE


def term_model(name: str) -> type[TermSection]:
    """Return the section of a term of the table."""
    return derive(FeatureTermSection if TERMS[name].reads_features else TermSection, TERMS[name].function)


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
        """Name the terms that need a discriminator: its logits, or features of it or of its copy."""
        readers = {name for name, network in self.networks().items() if network.reads_discriminator}
        return [name for name in self.root if TERMS[name].reads_logits or name in readers]


class PenaltiesSection(RootModel[dict[str, SerializeAsAny[PenaltySection]]]):
    """The gradient penalties by name."""

    model_config = ConfigDict(frozen=True)
    names: ClassVar[Mapping[str, object]] = PENALTIES

    def get(self, name: str) -> PenaltySection | None:
        return self.root.get(name)


class DiscriminatorOptimizerSection(Section):
    """Adam's settings for the discriminator.

    Options:
        lr: learning rate [paper]
        betas: decay rates of Adam's first and second moment [ours]
        schedule: constant, or follow: the generator's warm-up and cosine, down to 0 [ours]
    """

    lr: Annotated[float, Field(gt=0)] = 1.5e-4
    betas: tuple[Decay, Decay] = (0.5, 0.999)
    schedule: Literal["constant", "follow"] = "constant"


class OptimizerSection(Section):
    """AdamW's settings for the generator: `lr` itself, or `base_lr` for every 256 images of a batch.

    Options:
        lr: peak learning rate; null: base_lr decides. 1.5e-4 where neither is set [paper]
        base_lr: peak learning rate for every 256 images of a batch; null: lr decides [none]
        betas: decay rates of AdamW's first and second moment [MAE]
        weight_decay: decoupled weight decay of all weights but biases, norms and tokens [MAE]
        clip_norm: largest norm of the generator's gradient; null: not clipped [none]
        discriminator: the discriminator's own optimiser [paper]
    """

    lr: Annotated[float, Field(gt=0)] | None = None
    base_lr: Annotated[float, Field(gt=0)] | None = None
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    discriminator: DiscriminatorOptimizerSection = DiscriminatorOptimizerSection()

    _default = model_validator(mode="before")(partial(_fill, names=("lr", "base_lr"), default=1.5e-4))


class ScheduleSection(Section):
    """Warm-up, in epochs or as a share of all steps, then half a cosine down to `min_lr`.

    Options:
        warmup_epochs: epochs of the learning rate's rise from 0; null: warmup_ratio decides; 40 if neither is set [MAE]
        warmup_ratio: share of all steps over which the learning rate rises from 0; null: warmup_epochs decides [none]
        min_lr: learning rate of the generator at the end of the cosine [MAE]
    """

    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    warmup_ratio: Fraction | None = None
    min_lr: Annotated[float, Field(ge=0)] = 0.0

    _default = model_validator(mode="before")(partial(_fill, names=("warmup_epochs", "warmup_ratio"), default=40.0))


class TrainingSection(Section):
    """How long and how a run trains.

    Options:
        epochs: passes over the training images, or over epoch_images of them [paper]
        batch_size: images of one optimiser step, over all processes and micro-batches [paper]
        accumulation: micro-batches of a step; more need less memory for the same result [ours]
        epoch_images: images of an epoch; null: all training images [none]
        precision: autocast: no (float32), bf16 or fp16 [ours]
        seed: seed of all random draws: weights, order, crops, masks, augmentation [ours]
        order: lean: both networks are updated from one forward pass of the generator; sequential: the discriminator
            first, then the generator against the updated one [ours]
        ema_kimg: half-life of the averaged generator, in thousand images; null: no average is kept [none]
        log_every: steps from one line of metrics.jsonl to the next [ours]
        checkpoint_every: epochs from one checkpoint to the next [ours]
        keep_last: newest checkpoints that are kept [ours]
        keep_every: of older checkpoints, one every so many epochs is kept; null: none is [none]
    """

    epochs: Positive = 300
    batch_size: Positive = 16
    accumulation: Positive = 1
    epoch_images: Positive | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: Seed = 0
    order: Literal["lean", "sequential"] = "lean"
    ema_kimg: Annotated[float, Field(gt=0)] | None = None
    log_every: Positive = 50
    checkpoint_every: Positive = 1
    keep_last: Positive = 2
    keep_every: Positive | None = None


class EvaluationSection(Section):
    """The held-out score during and after training.

    Options:
        every: epochs from one score and sample grid to the next; 0: at the end alone [ours]
        limit: held-out images that are scored, of a fixed shuffle [ours]
        batch_size: held-out images in one forward pass [ours]
        seed: seed of the held-out images' masks [ours]
        grid_images: held-out images of the sample grid [ours]
        split: which held-out images: val or test [ours]
        probe_images: labelled training images of the probe and kNN that go with a score; 0: neither is fitted [ours]
    """

    every: Annotated[int, Field(ge=0)] = 1
    limit: Positive = 1000
    batch_size: Positive = 100
    seed: Seed = 0
    grid_images: Positive = 8
    split: Literal["val", "test"] = "test"
    probe_images: Annotated[int, Field(ge=0)] = 2000


class TrackingSection(Section):
    """Trackers that are sent the scalars of metrics.jsonl, too.

    Options:
        trackers: any of tensorboard, wandb, trackio [ours]
        project: name of the project in a tracker [ours]
        run_name: name of the run in a tracker; null: the run folder's [none]
    """

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
_LOSSES = entries(TERMS, "loss term", term_model, short="weight")
_PENALTIES = entries(PENALTIES, "penalty", lambda name: derive(PenaltySection, PENALTIES[name]))
_UNSAID: Any = {}
_BASE: Any = BASE


class RunConfig(BaseModel):
    """Everything that decides a run. Build it with `load_config` or `parse_config`, which also check that parts fit.

    Options:
        data: where images come from and how they are prepared [ours]
        masking: which patches are hidden [MAE]
        generator: the masked autoencoder [paper]
        discriminator: the discriminator; null: none, a plain masked autoencoder [paper]
        augment: augmentation of what the discriminator is shown; null: none [paper]
        losses: the terms of the generator's objective, by name; a file that states any replaces them all [paper]
        penalties: gradient penalties of the discriminator, by name [paper]
        optimizer: optimisers of both networks [paper]
        schedule: learning rate over the run [MAE]
        training: length, batch, precision, seed, checkpoints [paper]
        evaluation: held-out scores during and after training [ours]
        tracking: trackers [ours]
    """

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


describe_fields(RunConfig)
