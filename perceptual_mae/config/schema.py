"""The sections of a run's configuration. Defaults are the paper's (LS-GAN-P, ViT-B/16, 224 px) unless a line says so.

Options of data sets, maskings, networks and loss terms are the keyword-only parameters of their constructors.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, SerializeAsAny, model_validator
from torch import Tensor, nn

from discriminators import AUGMENTATIONS, DISCRIMINATORS, PENALTIES
from perceptual_mae.config.errors import RejectedError
from perceptual_mae.config.from_signature import (
    Choice,
    Options,
    choice,
    derive,
    describe_fields,
    entries,
    options_of,
)
from perceptual_mae.config.frozen_networks import FROZEN, FrozenNetworkSection
from perceptual_mae.config.layers import BASE
from perceptual_mae.config.mistake import Mistake
from perceptual_mae.config.own_kinds import Trust, import_own_term, positional_names, untrusted
from perceptual_mae.config.training_sections import (
    AugmentSection,
    EvaluationSection,
    Fraction,
    OptimizerSection,
    PenaltiesSection,
    PenaltySection,
    Place,
    ScheduleSection,
    Steps,
    TrackingSection,
    TrainingSection,
)
from perceptual_mae.data import DATASETS
from perceptual_mae.data.pixel_cache import CachedImages, PixelCache
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import ImageFormat, Size
from perceptual_mae.loss_networks import LIVE, LOSS_NETWORKS
from perceptual_mae.losses import FIELDS, TERMS, Term
from perceptual_mae.masking import MASKINGS
from perceptual_mae.objective.gradient_balance import RECONSTRUCTION
from perceptual_mae.objective.objective import Reach
from perceptual_mae.schedules import Ramp, Weight, When

Side = Annotated[int, Field(ge=1, le=8192)]
"""A side of an image, in pixels."""


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
        eval_resize: shorter side of held-out images before the center crop; auto: 256/224 of image_size where kind is
            image_folder or shards and crops are square, else null; null: as large as the crop needs [MAE]
        workers: processes that decode training images; 0: the main process does [ours]
        decode: where pre-training decodes JPEGs, and augments them: in the workers, or on the device that trains, batch
            by batch, with nvJPEG on a GPU [ours]
        cache: local folder, and its size, for the decoded training images of a data set of files: {folder, gigabytes};
            null: they are decoded whenever they are read [ours]
    """

    image_size: Side | tuple[Side, Side] = 224
    mean: tuple[Annotated[float, Field(ge=-1000, le=1000)], ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Field(ge=1e-6, le=1000)], ...] = (0.229, 0.224, 0.225)
    crop: Literal["random_resized", "center"] = "random_resized"
    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    flip: Fraction = 0.5
    color_jitter: Fraction = 0.0
    grayscale: Fraction = 0.0
    eval_resize: Side | Literal["auto"] | None = "auto"
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    decode: Literal["workers", "device"] = "workers"
    cache: PixelCache | None = None

    @property
    def size(self) -> Size:
        """Height and width of the images that enter the networks."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def build(self, *positional: Any) -> Any:
        """Return the data set of a split; with a cache, its images may come from there."""
        dataset = super().build(*positional)
        return dataset if self.cache is None else CachedImages(dataset, self.cache)

    @model_validator(mode="after")
    def _settle_eval_resize(self) -> Self:
        """State what `auto` is: a run folder means the same whatever a later version makes of the word."""
        if self.eval_resize == "auto" and hasattr(self, "constructor"):
            height, width = self.size
            scales = getattr(self.constructor, "photographs", False) and height == width
            object.__setattr__(self, "eval_resize", round(height * 256 / 224) if scales else None)
        return self

    @property
    def shorter_side(self) -> int | None:
        """The shorter side of held-out images before the center crop; None: as large as the crop needs."""
        return None if self.eval_resize == "auto" else self.eval_resize

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

    Options:
        init_from: run folder, checkpoint, or file or folder of weights (facebookresearch/mae, transformers, timm,
            diffusers, pmae export) whose encoder the encoder starts with; null: fresh [none]
        init_parts: what starts with the weights that init_from names: the encoder, or the whole generator [none]
        init_decoder: older name of init_parts: generator [none]
        freeze_encoder: keep the encoder's weights and train the decoder alone [none]
    """

    init_from: Place | None = None
    init_parts: Literal["encoder", "generator"] = "encoder"
    init_decoder: bool = False
    freeze_encoder: bool = False

    size: str
    patch_size: int | None
    rgb_heads: bool
    norm_pix: bool

    @property
    def starts_decoder(self) -> bool:
        """Whether the decoder, too, starts with the weights that `init_from` names."""
        return self.init_decoder or self.init_parts == "generator"


class MadeOfNetworks(Choice):
    """A section whose class may ask for frozen networks: in a file, its options of type `nn.Module` are their sections.

    They are built as loss networks are, for images of the largest size.
    """

    types_in_files: ClassVar[Mapping[type, Any]] = {nn.Module: Annotated[SerializeAsAny[FrozenNetworkSection], FROZEN]}

    def build(self, *positional: Any) -> Any:
        """Call the constructor with resolutions and channels last, and the options, networks built."""
        *_, (size, *_), channels = positional
        options = {
            name: option.build(size, channels) if isinstance(option, FrozenNetworkSection) else option
            for name, option in self.options().items()
        }
        return self.constructor(*positional, **options)


class DiscriminatorSection(MadeOfNetworks):
    """Options of a discriminator, and what it is shown of reconstructions.

    Options:
        kind: architecture of the discriminator [paper]
        init_from: file of weights it starts with: a state dict of NVIDIA's StyleGAN2, or one of this architecture from
            a run's checkpoint; null: fresh [none]
        pyramid: levels of a reconstruction: those that RGB heads write ("heads"), or averages of the full size
            ("pooled"), which agree with each other as those of an original do [paper]
        low_levels: factor of the gradient that returns through each level below the full size, or "k^-2", k being how
            much smaller the level is [paper]
        fake: the reconstruction itself ("raw"), or visible patches of the original with hidden ones of the
            reconstruction ("composite") [paper]
        discretise: round the reconstruction to bytes, as originals are, with the gradient of the unrounded [ours]
        lead: share of the run in which it learns before the first term that reads it is on; null: it learns from the
            start [ours]
        every: steps from one of its updates to the next; in the others the generator alone learns, against the
            discriminator as it is. Intervals of penalties count updates [paper]
        batch_share: share of the images of a micro-batch that it is shown, the first ones, real and fake, in (0, 1];
            its cost is in proportion to it. Terms that read no discriminator compare all images [paper]
        crop: side in pixels of the square at a random place that it is shown of each image, the same of real and fake;
            it is built for this size and reads no pyramid; null: whole images [paper]
    """

    init_from: Place | None = None
    pyramid: Literal["heads", "pooled"] = "heads"
    low_levels: Annotated[float, Field(ge=0, le=1000)] | Literal["k^-2"] = 1.0
    fake: Literal["raw", "composite"] = "raw"
    discretise: bool = False
    lead: Fraction | None = None
    every: Steps = 1
    batch_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    crop: Side | None = None

    @property
    def reads_encoder(self) -> bool:
        """Whether it is made of the generator's encoder."""
        return self.asks_for("encoder")


class LossNetworkSection(Choice):
    """The network through which a term compares fake and real, with its options.

    Options:
        kind: the network whose features are compared [paper]
    """

    @property
    def reads_discriminator(self) -> bool:
        """Whether it is the run's discriminator, or made of it."""
        return self.asks_for("discriminator")


ANY_NETWORK = choice(LossNetworkSection, LOSS_NETWORKS, "loss network", LIVE)


class TermSection(Options):
    """One term of the objective: its weight, its phase, and the options of its function.

    Options:
        weight: weight in the objective: a number, a ramp, or a balanced share of L1's gradient [ours]
        when: the steps in which the term counts: always, even_epochs, odd_epochs, {from_epoch: n}, {from_share: x},
            {every: n} [ours]
        reach: what of the generator the term's gradient reaches: all of it, or the decoder alone [ours]
    """

    weight: Weight = 1.0
    when: When = "always"
    reach: Reach = "all"


_LIVE: Any = {"kind": LIVE}


class FeatureTermSection(TermSection):
    """A term that compares features of fake and real images.

    Options:
        network: the network whose features are compared [paper]
    """

    model_config = ConfigDict(validate_default=True)

    network: Annotated[SerializeAsAny[LossNetworkSection], ANY_NETWORK] = _LIVE


class OwnTermSection(TermSection):
    """A term of one's own: a function whose positional parameters are the fields it reads.

    Options:
        kind: your function, package.module:function [none]
    """

    kind: str


class OwnFeatureTermSection(FeatureTermSection):
    """A term of one's own that compares features.

    Options:
        kind: your function, package.module:function [none]
    """

    kind: str


def term_model(name: str) -> type[TermSection]:
    """Return the section of a term of the table."""
    return derive(FeatureTermSection if TERMS[name].reads_features else TermSection, TERMS[name].function)


def own_term_model(name: str, kind: str, trust: Trust) -> type[TermSection]:
    """Return the section of a term of one's own; RejectedError where its name or its function will not do."""
    if not name.isidentifier() or name == RECONSTRUCTION:
        raise RejectedError([Mistake(("",), "a term of your own needs a plain word as its name, such as my_term")])
    if not trust.allows(kind):
        return untrusted(OwnTermSection, kind, f"loss term {name}", trust.source)
    try:
        function = import_own_term(kind, FIELDS)
        features = own_term(function).reads_features
        return derive(OwnFeatureTermSection if features else OwnTermSection, function, kind)
    except (ValueError, TypeError, NameError) as error:
        raise RejectedError([Mistake(("kind",), str(error))]) from error


def own_term(function: Callable[..., Tensor]) -> Term:
    """Return the term of a function of one's own, which reads the fields that its positional parameters are called."""
    return Term(function, tuple(name for name in positional_names(function) or () if name in FIELDS))


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

    def term(self, name: str) -> Term:
        """Return the term of an entry: the table's, or one's own."""
        return TERMS[name] if name in TERMS else own_term(self.root[name].constructor)

    def networks(self) -> dict[str, LossNetworkSection]:
        """Return, by term, the networks through which terms compare."""
        return {name: term.network for name, term in self.items() if isinstance(term, FeatureTermSection)}

    def discriminator_readers(self) -> list[str]:
        """Name the terms that need a discriminator: its logits, or features of it or of its copy."""
        readers = {name for name, network in self.networks().items() if network.reads_discriminator}
        return [name for name in self.root if self.term(name).reads_logits or name in readers]


DEFAULT_AUGMENTATION = "ada"
"""Its kind where `augment` names none."""

_DATA = choice(DataSection, DATASETS, "data set", BASE["data"]["kind"])
_MASKING = choice(MaskingSection, MASKINGS, "masking", BASE["masking"]["kind"])
_DISCRIMINATOR = choice(DiscriminatorSection, DISCRIMINATORS, "discriminator", BASE["discriminator"]["kind"])
_GENERATOR = options_of(GeneratorSection, MaskedAutoencoder)
_AUGMENT = choice(AugmentSection, AUGMENTATIONS, "augmentation", DEFAULT_AUGMENTATION)
_LOSSES = entries(TERMS, "loss term", term_model, short="weight", own_model=own_term_model)
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
