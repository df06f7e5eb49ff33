"""From sections of a configuration to the parts of a run: each builder takes the section it reads, and plain values.

Nobody reads the configuration after building.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from discriminators import Augmentation, Discriminator
from discriminators.penalties import PathLength, lazy_adam
from perceptual_mae.config.from_signature import refuse_untrusted
from perceptual_mae.config.mistake import Mistake
from perceptual_mae.config.schema import (
    DataSection,
    DiscriminatorSection,
    GeneratorSection,
    LossesSection,
    LossNetworkSection,
    MaskingSection,
    RunConfig,
)
from perceptual_mae.config.training_sections import (
    AugmentSection,
    OptimizerSection,
    PenaltiesSection,
    ScheduleSection,
    TrainingSection,
)
from perceptual_mae.data.draws import Attention, FixedMasks, TrainingMasks
from perceptual_mae.data.loading import EpochPlan
from perceptual_mae.data.transforms import EvaluationTransform, TrainTransform
from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import ImageFormat, Size, pyramid_sizes
from perceptual_mae.loss_networks import LIVE, LossNetworks
from perceptual_mae.losses.adversarial import ADVERSARIAL, AdversarialLoss, adversarial_discriminator
from perceptual_mae.objective.discriminator_input import DiscriminatorInput, ShownParts
from perceptual_mae.objective.objective import Objective, WeightedTerm
from perceptual_mae.schedules import Timetable, first_share, value_at
from perceptual_mae.seeding import stream_seed


def make_generator(section: GeneratorSection, image: ImageFormat) -> MaskedAutoencoder:
    """Return the generator with weights drawn as the caller's random state says; ValueError for what it refuses."""
    return MaskedAutoencoder(image.size, image.channels, image.mean, image.std, **section.options())


def build_generator(section: GeneratorSection, image: ImageFormat, seed: int) -> MaskedAutoencoder:
    """Return the generator with weights drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("generator", seed))
        return user_mistakes(lambda: make_generator(section, image))


def build_discriminator(
    section: DiscriminatorSection | None, image: ImageFormat, seed: int, encoder: nn.Module | None = None
) -> nn.Module | None:
    """Return the discriminator with weights drawn from the run's seed, or None for a plain MAE.

    encoder: the generator's, for a kind whose first parameter is called so.
    """
    if section is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("discriminator", seed))
        try:
            discriminator: nn.Module = user_mistakes(lambda: make_discriminator(section, image, encoder))
        except ImportError as mistake:
            raise UserError(f"discriminator: {mistake}; install it: pip install {mistake.name}") from mistake
    if not isinstance(discriminator, Discriminator):
        raise UserError(
            f"discriminator.kind: {section.kind} is no discriminator: it needs `levels` and `forward(pyramid)`"
        )
    return discriminator.to(memory_format=torch.channels_last)


def make_discriminator(section: DiscriminatorSection, image: ImageFormat, encoder: nn.Module | None) -> Any:
    """Return the discriminator with weights drawn as the caller's random state says; ValueError for what it refuses."""
    made_of = (encoder,) if section.reads_encoder else ()
    return section.build(*made_of, pyramid_sizes(shown_image(section, image).size), image.channels)


def shown_image(section: DiscriminatorSection | None, image: ImageFormat) -> ImageFormat:
    """Return the format of what the discriminator is shown: whole images, or squares of them."""
    crop = None if section is None else section.crop
    return image if crop is None else replace(image, size=(crop, crop))


def discriminator_of(config: RunConfig) -> Any:
    """Return a run's discriminator, made as `make_discriminator` does; ValueError for what it refuses."""
    section, image = config.discriminator, config.data.image
    assert section is not None
    encoder = make_generator(config.generator, image).encoder if section.reads_encoder else None
    return make_discriminator(section, image, encoder)


def build_objective(losses: LossesSection, telemetry_every: int) -> Objective:
    """Return the generator's objective: the table's terms with weights, phases, options and networks of the run."""
    refuse_untrusted(losses)
    keys, readers = loss_network_keys(losses), losses.discriminator_readers()
    return Objective(
        {
            name: WeightedTerm(
                losses.term(name),
                section.weight,
                section.when,
                section.options(),
                keys.get(name, LIVE),
                section.reach,
                name in readers,
            )
            for name, section in losses.items()
        },
        telemetry_every,
    )


def loss_network_keys(losses: LossesSection) -> dict[str, str]:
    """Return, by term, the key of the network it compares through; the same settings have the same key."""
    keys: dict[str, str] = {}
    known: list[LossNetworkSection] = []
    for name, section in losses.networks().items():
        if section not in known:
            known.append(section)
        number = 1 + [other for other in known if other.kind == section.kind].index(section)
        keys[name] = re.sub(r"\W", "_", section.kind) + (f"_{number}" if number > 1 else "")
    return keys


def build_loss_networks(
    losses: LossesSection, image: ImageFormat, discriminator: nn.Module | None, seed: int
) -> LossNetworks:
    """Return the networks that terms compare through, but for the live discriminator, with weights from files."""
    fixed: dict[str, nn.Module] = {}
    copies: dict[str, nn.Module] = {}
    sections = losses.networks()
    for name, key in loss_network_keys(losses).items():
        if key == LIVE or key in fixed or key in copies:
            continue
        section, place = sections[name], f"losses.{name}.network"
        positional = (discriminator,) if section.reads_discriminator else (image.size, image.channels)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream_seed("loss network", seed))
                network = section.build(*positional)
        except ImportError as mistake:
            raise UserError(f"{place}: {mistake}; install it: pip install {mistake.name}") from mistake
        except ValueError as mistake:
            raise UserError(f"{place}: {' '.join(str(mistake).split())}") from mistake
        if not isinstance(network, nn.Module):
            raise UserError(f"{place}.kind: {section.kind} is no network; it must be a torch.nn.Module")
        (copies if section.reads_discriminator else fixed)[key] = network
    return LossNetworks(fixed, copies)


def build_discriminator_loss(losses: LossesSection) -> tuple[Callable[..., Tensor], AdversarialLoss, bool]:
    """Return the discriminator's loss (of real and fake logits, masks, their grid), its kind, and if it is by position.

    Without an adversarial term the discriminator still learns to distinguish real from fake: its features are compared.
    """
    section = dict(losses.items()).get("adversarial")
    options = section.options() if section is not None else {}
    # Options that do not go together are refused by the loss itself: ask it before training does.
    one = torch.zeros(1, 1, 1)
    user_mistakes(lambda: adversarial_discriminator(one, one, torch.ones(1, 1), (1, 1), **options))
    kind = ADVERSARIAL[options.get("kind", "least_squares")]
    return partial(adversarial_discriminator, **options), kind, options.get("targets") == "position"


def build_discriminator_input(section: DiscriminatorSection, levels: int) -> DiscriminatorInput:
    """Return what a discriminator of so many levels is shown of reconstructions."""
    is_pooled, is_composite = section.pyramid == "pooled", section.fake == "composite"
    return DiscriminatorInput(levels, is_pooled, is_composite, section.discretise, section.low_levels)


def build_shown_parts(
    section: DiscriminatorSection, image: ImageFormat, levels: int, micro_batch: int, seed: int
) -> ShownParts | None:
    """Return what draws the part of a micro-batch that a discriminator of so many levels is shown; None: all of it.

    Raises ValueError for a share that leaves no image, or less than a group of the minibatch standard deviation, and
    for squares that do not fit.
    """
    share, crop = section.batch_share, section.crop
    if share == 1 and crop is None:
        return None
    if crop is not None and (levels > 1 or section.reads_encoder):
        reads = f"reads a pyramid of {levels} levels" if levels > 1 else "reads whole images with the encoder"
        message = f"crop {crop} is for a discriminator of single images, but {section.kind} {reads}"
        raise ValueError(f"{message}; set it to null")
    images, options = int(micro_batch * share + 1e-6), section.options()
    group = options.get("minibatch_group", 1) if options.get("minibatch_stddev", True) else 1
    least = group if isinstance(group, int) else 2
    if share < 1 and images < least:
        needs = "at least one is needed" if least == 1 else f"its minibatch_group {group} needs {least}"
        message = f"discriminator.batch_share {share:g} leaves {images} of a micro-batch of {micro_batch} images"
        raise ValueError(f"{message}, but {needs}; raise it or the batch size")
    return ShownParts(image.size, share, crop, seed)


def shown_part_mistakes(config: RunConfig) -> Iterator[Mistake]:
    """Yield what `build_shown_parts` refuses on one process; on more, micro-batches are smaller."""
    section, training, levels = config.discriminator, config.training, 1
    if section is None or (section.batch_share == 1 and section.crop is None):
        return
    with suppress(Exception), torch.device("meta"):  # what cannot be built is reported with its own reason
        levels = discriminator_of(config).levels
    try:
        build_shown_parts(section, config.data.image, levels, training.batch_size // training.accumulation, 0)
    except ValueError as error:
        own = ("batch_share", "crop", "kind", "input", "minibatch_group", "minibatch_stddev")
        others = ("data.image_size", "training.batch_size", "training.accumulation")
        yield Mistake((*(f"discriminator.{name}" for name in own), *others), str(error))
        return
    adversarial = dict(config.losses.items()).get("adversarial")
    if section.crop is not None and adversarial is not None and adversarial.options().get("targets") == "position":
        message = "targets: position are those of whole images; set discriminator.crop=null or targets=image"
        yield Mistake(("losses.adversarial.targets", "discriminator.crop"), message)


def discriminator_start(section: DiscriminatorSection, losses: LossesSection, epochs: int) -> float:
    """Return the share of the run before the discriminator learns: its lead ahead of the first term that reads it."""
    if section.lead is None:
        return 0.0
    first = min(first_share(losses[name].when, epochs) for name in losses.discriminator_readers())
    return max(0.0, first - section.lead)


def build_augmentation(section: AugmentSection | None, image: ImageFormat) -> Augmentation | None:
    """Return the augmentation of what the discriminator is shown, or None."""
    if section is None:
        return None
    augmentation: Augmentation = user_mistakes(lambda: section.build(pyramid_sizes(image.size), image.channels))
    return augmentation


def build_penalty(penalties: PenaltiesSection, name: str, image: ImageFormat, batch_size: int) -> Any:
    """Return a gradient penalty of the run by its name in the table, or None; `batch_size`: images of a step."""
    section = penalties.get(name)
    if section is None:
        return None
    penalty = user_mistakes(lambda: section.build(image.size, batch_size))
    return None if getattr(penalty, "weight", 1) == 0 else penalty


def ema_decay(training: TrainingSection) -> float | None:
    """Return the decay a step whose half-life is `training.ema_kimg` thousand images, or None for no average."""
    return 0.5 ** (training.batch_size / (training.ema_kimg * 1000)) if training.ema_kimg else None


def generator_adam(
    optimizer: OptimizerSection, batch_size: int, path_length: PathLength | None = None
) -> tuple[float, tuple[float, float]]:
    """Return the generator's peak learning rate and betas, corrected where path length takes steps of its own."""
    scaled = None if optimizer.base_lr is None else optimizer.base_lr * batch_size / 256  # MAE's rule
    rate = cast(float, optimizer.lr if scaled is None else scaled)
    return lazy_adam(rate, optimizer.betas, path_length.every) if path_length is not None else (rate, optimizer.betas)


def build_train_transform(data: DataSection) -> TrainTransform:
    """Return the crop, flip and colour changes of training images."""
    return TrainTransform(
        data.size,
        crop=data.crop,
        crop_scale=data.crop_scale,
        flip=data.flip,
        color_jitter=data.color_jitter,
        grayscale=data.grayscale,
    )


def build_evaluation_transform(data: DataSection) -> EvaluationTransform:
    """Return how held-out images are resized and cropped."""
    return EvaluationTransform(data.size, data.shorter_side)


def build_training_masks(
    section: MaskingSection, grid: Size, seed: int, attention: Attention | None = None
) -> TrainingMasks:
    """Return what draws a training batch's masks; `attention` is called where the masking depends on the encoder."""
    return TrainingMasks(section.bind(), section.ratio, grid, seed, attention if section.reads_attention else None)


def build_fixed_masks(section: MaskingSection, grid: Size, seed: int, ratio: float | None = None) -> FixedMasks:
    """Return what draws held-out images' masks, at the ratio training ends with unless another is given."""
    fixed = section.of_held_out_images
    return FixedMasks(fixed.bind(), final_ratio(section) if ratio is None else ratio, grid, seed)


def final_ratio(masking: MaskingSection) -> float:
    """Return the masking ratio at the end of training: the one that held-out images are masked with."""
    return value_at(masking.ratio, 1.0)


def build_plan(training: TrainingSection, num_images: int) -> EpochPlan:
    """Return the order of training images over epochs."""
    return EpochPlan(num_images, training.batch_size, seed=training.seed, epoch_images=training.epoch_images)


def build_timetable(schedule: ScheduleSection, epochs: int, steps_per_epoch: int) -> Timetable:
    """Return the run's steps and its warm-up."""
    total = steps_per_epoch * epochs
    warmup = schedule.warmup_ratio * total if schedule.warmup_ratio is not None else None
    warmup_epochs = schedule.warmup_epochs if schedule.warmup_epochs is not None else 0.0
    return Timetable(steps_per_epoch, total, round(warmup if warmup is not None else warmup_epochs * steps_per_epoch))


Built = TypeVar("Built")


def user_mistakes(build: Callable[[], Built]) -> Built:
    """Run a constructor whose options the user chose; its ValueError becomes the user's mistake."""
    try:
        return build()
    except UserError:
        raise
    except ValueError as mistake:
        raise UserError(str(mistake)) from mistake


def refusals(build: Callable[[], object], keys: tuple[str, ...]) -> Iterator[Mistake]:
    """Yield what a constructor refuses as a mistake of these keys; it gets no memory."""
    try:
        with torch.device("meta"):
            build()
    except (ValueError, TypeError, OverflowError) as error:
        yield Mistake(keys, f"cannot be built: {' '.join(str(error).split())}")
    except RuntimeError as error:
        if "numel" in str(error) or "overflow" in str(error):
            yield Mistake(
                keys, "cannot be built: its tensors would have more values than can be counted; make it smaller"
            )
    except (AttributeError, ImportError):
        pass  # a class of the user's own may not build without memory, a library not be here: it is built later
