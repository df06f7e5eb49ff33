"""Which parts of a configuration do not fit each other, one check a function.

Each mistake names all the keys it depends on, and is left out where one of them is wrong by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from perceptual_mae.config.build import discriminator_of, make_generator, refusals, shown_image, shown_part_mistakes
from perceptual_mae.config.mistake import Mistake
from perceptual_mae.config.schema import LossNetworkSection, RunConfig, TermSection
from perceptual_mae.data import DATASETS
from perceptual_mae.generator.sizes import SIZES
from perceptual_mae.images import pyramid_sizes, resolutions
from perceptual_mae.losses import TERMS
from perceptual_mae.masking import draw_masks, num_hidden
from perceptual_mae.schedules import Balanced, FromEpoch, FromShare, Ramp, Weight, first_share, range_of

Check = Callable[[RunConfig], Iterator[Mistake]]

MOST_PATCHES = 2**16
"""Attention grows with their square; more would be out of the reach of every machine."""

LARGEST_WEIGHT = 1e9
LARGE_ENOUGH = 1024
"""Pixels of a side beyond which no term refuses an image for its size."""


def cross_field_errors(config: RunConfig) -> list[Mistake]:
    """Return every mistake that takes more than one key to see, in the order of the checks."""
    return [mistake for check in CHECKS for mistake in check(config)]


def any_term(config: RunConfig) -> tuple[str, ...]:
    """Return the keys of all terms, for what a term with a misspelt name, or one of the user's own, might set right."""
    names = dict.fromkeys([*TERMS, *(name for name, _ in config.losses.items())])
    return tuple(f"losses.{name}" for name in names)


def check_image_size(config: RunConfig) -> Iterator[Mistake]:
    (height, width), generator = config.data.size, config.generator
    patch_size = generator.patch_size or SIZES[generator.size].patch_size
    keys = ("data.image_size", "generator.patch_size", "generator.size")
    if height % patch_size or width % patch_size:
        fitting = [max(1, side // patch_size) * patch_size for side in (height, width)]
        yield Mistake(
            keys,
            f"image size {height}x{width} is not a multiple of patch size {patch_size}; "
            f"use {fitting[0]}x{fitting[1]} or another generator.patch_size",
        )
    resize = config.data.shorter_side
    if resize is not None and resize < max(height, width):
        yield Mistake(
            ("data.eval_resize", "data.image_size"),
            f"images resized to {resize} are smaller than the crop of {height}x{width}; enlarge it",
        )
    patches = (height // patch_size) * (width // patch_size)
    if patches > MOST_PATCHES:
        message = f"{height}x{width} in patches of {patch_size} are {patches:,}, at most {MOST_PATCHES:,} can be "
        yield Mistake(keys, message + "attended to; choose smaller images or a larger generator.patch_size")
    low, high = config.data.crop_scale
    if not 0 < low <= high:
        yield Mistake(("data.crop_scale",), f"found {low} to {high}, must be two ascending shares above 0")


def check_channels(config: RunConfig) -> Iterator[Mistake]:
    mean, std, kind = config.data.mean, config.data.std, config.data.kind
    keys = ("data.mean", "data.std", "data.kind")
    if len(mean) != len(std):
        yield Mistake(keys, f"{len(mean)} means but {len(std)} deviations; give one of each for every channel")
    elif len(mean) != 3 and kind in DATASETS:
        yield Mistake(keys, f"found {len(mean)} values, but images of {kind} have 3 channels")


def check_decoding(config: RunConfig) -> Iterator[Mistake]:
    if config.data.decode == "device" and config.data.cache is not None:
        message = "a cache keeps decoded images, which leaves nothing to data.decode=device; drop one of them"
        yield Mistake(("data.decode", "data.cache"), message)


def check_networks(config: RunConfig) -> Iterator[Mistake]:
    """Build both networks without memory: what their constructors refuse is a mistake of the configuration."""
    if config.generator.rgb_heads:
        try:
            resolutions(config.data.size)
        except ValueError as error:
            yield Mistake(("data.image_size", "generator.rgb_heads"), f"generator.rgb_heads: {error}")
            return
    if any(check_image_size(config)) or any(check_channels(config)):
        return  # reported already
    if config.generator.norm_pix and config.generator.rgb_heads:
        return  # reported by check_norm_pix
    generator = partial(make_generator, config.generator, config.data.image)
    mistakes = list(refusals(generator, ("generator.*", "data.image_size")))
    yield from mistakes
    if config.discriminator is not None and not (mistakes and config.discriminator.reads_encoder):
        unfit = list(shown_part_mistakes(config))
        yield from unfit or refusals(partial(discriminator_of, config), ("discriminator.*", "data.image_size"))


def check_norm_pix(config: RunConfig) -> Iterator[Mistake]:
    if not config.generator.norm_pix:
        return
    if config.generator.rgb_heads:
        keys = ("generator.norm_pix", "generator.rgb_heads")
        yield Mistake(keys, "norm_pix predicts normalised patches, not images for rgb_heads; switch one of them off")
    for name, _ in config.losses.items():
        if config.losses.term(name).compares_images:
            yield Mistake(
                (f"losses.{name}", "generator.norm_pix"),
                f"{name} compares images, but with generator.norm_pix the prediction is none; switch one of them off",
            )


def check_discriminator(config: RunConfig) -> Iterator[Mistake]:
    readers = config.losses.discriminator_readers()
    if config.discriminator is None:
        for name in readers:
            message = f"{name} needs a discriminator, but discriminator is null; set one or losses.{name}=null"
            keys: tuple[str, ...] = (f"losses.{name}", "discriminator")
            if name in config.losses.networks():
                message += ", or another network for it"
                keys = (*keys, f"losses.{name}.network")
            yield Mistake(keys, message)
    elif not readers and list(config.losses.items()):
        message = (
            f"no loss term reads the discriminator {config.discriminator.kind}; set discriminator=null or add a term"
        )
        networks = (f"losses.{name}.network" for name in config.losses.networks())
        yield Mistake(("discriminator", *any_term(config), *networks), message)


def check_loss_networks(config: RunConfig) -> Iterator[Mistake]:
    """Build the networks that terms compare through without memory and without opening their files."""
    if any(check_image_size(config)) or any(check_channels(config)):
        return  # reported already
    sound: list[LossNetworkSection] = []
    for name, network in config.losses.networks().items():
        if network in sound:
            continue  # the same as another term's
        if network.reads_discriminator and config.discriminator is None:
            continue  # reported by check_discriminator
        place = f"losses.{name}.network"
        has_no_weights = network.options().get("weights", "") is None
        keys = (f"{place}.weights",) if has_no_weights else (f"{place}.*", "data.image_size")
        positional = (nn.Identity(),) if network.reads_discriminator else (config.data.size, len(config.data.mean))
        mistakes = list(refusals(partial(network.build, *positional), keys))
        yield from mistakes
        if not mistakes:
            sound.append(network)


def check_augmentation_and_penalties(config: RunConfig) -> Iterator[Mistake]:
    """Augmentation and penalties are a discriminator's; their constructors are asked what they refuse."""
    wanted = [f"penalties.{name}" for name in config.penalties.root]
    wanted += ["augment"] if config.augment is not None else []
    if config.discriminator is None:
        for key in wanted:
            yield Mistake((key, "discriminator"), f"{key} is for a discriminator, but discriminator is null; remove it")
        return
    shown = shown_image(config.discriminator, config.data.image)
    if (augment := config.augment) is not None:
        build = partial(augment.build, pyramid_sizes(shown.size), shown.channels)
        yield from refusals(build, ("augment.*", "data.image_size"))
    for name, penalty in config.penalties.root.items():
        build = partial(penalty.build, shown.size, config.training.batch_size)
        yield from refusals(build, (f"penalties.{name}.*", "data.image_size"))


def check_heads(config: RunConfig) -> Iterator[Mistake]:
    """Low levels that no term reads would never learn (and several processes would wait for their gradients)."""
    always = {name: term for name, term in config.losses.items() if _always_on([term])}
    if not config.generator.rgb_heads or any(term.options().get("low_levels") for term in always.values()):
        return
    reads_heads = any(name in always for name in config.losses.discriminator_readers())
    if (section := config.discriminator) is not None and section.pyramid == "heads" and reads_heads:
        with suppress(Exception), torch.device("meta"):
            if discriminator_of(config).levels > 1:
                return
    keys = ("generator.rgb_heads", "losses.*", "discriminator")
    yield Mistake(
        keys,
        "no term always reads the low levels of generator.rgb_heads; set losses.l1.low_levels or switch them off",
    )


def check_weights(config: RunConfig) -> Iterator[Mistake]:
    losses, readers = config.losses, config.losses.discriminator_readers()
    plain = {
        name: term
        for name, term in losses.items()
        if not isinstance(term.weight, Balanced) and name not in readers and losses.term(name).acts_through_decoder
    }
    for name, term in losses.items():
        if isinstance(term.weight, Balanced) and term.weight.anchor == "l1":
            if name == "l1" or "l1" not in plain or not _always_on([plain["l1"]]):
                reason = "its own gradient" if name == "l1" else "the gradient of l1, which is not always on"
                hint = "" if name == "l1" else ", add l1 or set anchor: reconstruction"
                keys = (f"losses.{name}.weight", "losses.l1")
                yield Mistake(keys, f"{name} is balanced against {reason}; give it a number{hint}")
        elif isinstance(term.weight, Balanced) and not _always_on(list(plain.values())):
            yield Mistake(
                (f"losses.{name}.weight", *any_term(config)),
                f"{name} is balanced against the reconstruction, of which no term is always on; add l1 or ms_ssim",
            )
        if isinstance(term.weight, Balanced) and not losses.term(name).acts_through_decoder:
            message = f"{name} acts on the encoder alone, past the place where gradients are balanced; give it a number"
            yield Mistake((f"losses.{name}.weight",), message)
        if isinstance(term.weight, Balanced):
            continue
        lowest, largest = range_of(term.weight)
        if lowest < 0:
            yield Mistake((f"losses.{name}.weight",), f"found {lowest:g}, must be >= 0: terms are minimised")
        elif largest > LARGEST_WEIGHT:
            yield Mistake((f"losses.{name}.weight",), f"found {largest:g}, must be at most {LARGEST_WEIGHT:g}")


def check_term_options(config: RunConfig) -> Iterator[Mistake]:
    """Call each term once, on a black image: what it refuses is a mistake of the configuration."""
    if any(check_image_size(config)) or any(check_channels(config)):
        return  # reported already
    patch_size = config.generator.patch_size or SIZES[config.generator.size].patch_size
    grid = tuple(min(side, LARGE_ENOUGH) // patch_size for side in config.data.size)
    size = (grid[0] * patch_size, grid[1] * patch_size)
    with torch.device("cpu"):
        image = torch.zeros(1, len(config.data.mean), *size)
        mask = torch.ones(1, grid[0] * grid[1], dtype=torch.bool)
        fields = dict.fromkeys(("fake", "real", "prediction", "target", "fake_features", "real_features"), (image,))
        logits = torch.zeros(1, *grid)
        values: dict[str, object] = {**fields, "mask": mask, "grid": grid, "fake_logits": logits, "real_logits": logits}
        values["tokens"] = values["latent"] = torch.zeros(1, 2, 1)
        for name, term in config.losses.items():
            line = config.losses.term(name)
            try:
                loss = line.function(*(values[field] for field in line.reads), **term.options())
            except (ValueError, TypeError) as error:
                yield Mistake((f"losses.{name}.*", "data.image_size"), " ".join(str(error).split()))
            except Exception:
                if name in TERMS:
                    raise
                continue  # a term of the user's own may want features or levels that these stand-ins have not
            else:
                if not isinstance(loss, torch.Tensor) or loss.ndim:
                    yield Mistake((f"losses.{name}.kind",), "must return one number, a tensor without dimensions")


def check_positions(config: RunConfig) -> Iterator[Mistake]:
    """Targets by position need a map of logits, and visible patches that are the original's."""
    section = config.discriminator
    if section is None or "adversarial" not in config.losses:
        return  # reported by check_discriminator
    if config.losses["adversarial"].options().get("targets") != "position":
        return
    key = "losses.adversarial.targets"
    if section.fake != "composite":
        message = "targets: position calls visible patches real; set discriminator.fake=composite"
        yield Mistake((key, "discriminator.fake"), message)
    sizes, channels = pyramid_sizes(config.data.size), len(config.data.mean)
    with suppress(Exception), torch.device("meta"):
        logits = discriminator_of(config)([torch.zeros(2, channels, *size) for size in sizes]).logits
        if logits.ndim != 3 or logits[0].numel() < 2:
            message = f"targets: position needs a map of logits, but {section.kind} gives one an image; set "
            yield Mistake((key, "discriminator.*"), message + "discriminator.form=patch, kind=token or targets=image")


def check_frozen_encoder(config: RunConfig) -> Iterator[Mistake]:
    """Something must be left to learn, and to learn from."""
    terms = dict(config.losses.items())
    if config.generator.starts_decoder and config.generator.init_from is None:
        key = "generator.init_decoder" if config.generator.init_decoder else "generator.init_parts"
        keys = (key, "generator.init_from")
        yield Mistake(keys, "there is no run to take the decoder of; set generator.init_from")
    if config.generator.freeze_encoder:
        for name in terms:
            if not config.losses.term(name).acts_through_decoder:
                message = f"{name} acts on the encoder alone, which is frozen; switch one of them off"
                yield Mistake((f"losses.{name}", "generator.freeze_encoder"), message)
        if config.generator.options().get("drop_path"):
            message = "stochastic depth regularises an encoder that learns, but this one is frozen; set it to 0"
            yield Mistake(("generator.drop_path", "generator.freeze_encoder"), message)
    elif _always_on(list(terms.values())) and not _always_on([term for term in terms.values() if term.reach == "all"]):
        message = "no term that is always on reaches the encoder; set reach: all, or generator.freeze_encoder=true"
        yield Mistake(("losses.*", "generator.freeze_encoder"), message)


def check_terms(config: RunConfig) -> Iterator[Mistake]:
    terms = dict(config.losses.items())
    if not terms:
        message = f"no term at all, nothing to learn from; choose from: {', '.join(TERMS)}"
        yield Mistake(("losses", *any_term(config)), message)
    elif not _always_on(list(terms.values())):
        message = "no term is on all the time (when: always, weight never 0); some steps would have nothing to learn "
        yield Mistake(("losses", "losses.*"), message + "from")


def check_masking(config: RunConfig) -> Iterator[Mistake]:
    ratio = config.masking.ratio
    low, high = range_of(ratio)
    if low < 0 or high >= 1:
        yield Mistake(("masking.ratio",), f"found {low} to {high}, must stay >= 0 and < 1")
        return
    if config.training.cuda_graphs and config.training.compile == "all" and low != high:
        keys = ("training.cuda_graphs", "training.compile", "masking.ratio")
        message = f"cuda_graphs needs a constant number of visible patches, but masking.ratio goes from {low:g} to "
        yield Mistake(keys, message + f"{high:g}; set training.compile=discriminator")
    if any(check_image_size(config)):
        return  # reported already
    patch_size = config.generator.patch_size or SIZES[config.generator.size].patch_size
    grid = (config.data.size[0] // patch_size, config.data.size[1] // patch_size)
    num_patches = grid[0] * grid[1]
    try:
        hidden = num_hidden(num_patches, high)
    except ValueError as error:
        yield Mistake(("masking.ratio", "data.image_size", "generator.patch_size"), str(error))
        return
    if high > 0 and hidden == 0:
        message = f"masking ratio {high:g} hides none of {num_patches} patches; use at least "
        keys = ("masking.ratio", "data.image_size", "generator.patch_size")
        yield Mistake(keys, message + f"{1 / num_patches:.4g}, or 0")
        return
    uniform = torch.ones(1, num_patches) if config.masking.reads_attention else None
    try:
        draw_masks(config.masking.bind(), grid, hidden, [torch.Generator()], uniform)
    except (ValueError, TypeError) as error:
        yield Mistake(("masking.*",), " ".join(str(error).split()))
    for name, term in config.losses.items():
        if term.options().get("region") == "masked" and num_hidden(num_patches, low) == 0:
            message = f"{name} compares hidden patches only, but masking.ratio comes to hide none; use region: all"
            yield Mistake((f"losses.{name}.region", "masking.ratio"), message)


def check_optimisation(config: RunConfig) -> Iterator[Mistake]:
    optimizer, schedule, training = config.optimizer, config.schedule, config.training
    if optimizer.lr is not None and optimizer.base_lr is not None:
        message = f"both base_lr {optimizer.base_lr} and lr {optimizer.lr} are set; set one of them to null"
        yield Mistake(("optimizer.base_lr", "optimizer.lr"), message)
    peak = optimizer.lr if optimizer.lr is not None else (optimizer.base_lr or 0) * training.batch_size / 256
    if schedule.min_lr > peak:
        rates = ("schedule.min_lr", "optimizer.lr", "optimizer.base_lr", "training.batch_size")
        yield Mistake(rates, f"min_lr {schedule.min_lr:g} is above the peak learning rate {peak:g}; lower it")
    if schedule.warmup_epochs is not None and schedule.warmup_ratio is not None:
        keys = ("schedule.warmup_ratio", "schedule.warmup_epochs")
        yield Mistake(keys, "both warmup_ratio and warmup_epochs are set; set one of them to null")
    elif schedule.warmup_epochs is not None and schedule.warmup_epochs > training.epochs:
        yield Mistake(
            ("schedule.warmup_epochs", "training.epochs"),
            f"a warm-up of {schedule.warmup_epochs:g} epochs is longer than the run of {training.epochs}; "
            "shorten it or set schedule.warmup_ratio",
        )
    if training.batch_size % training.accumulation:
        yield Mistake(
            ("training.accumulation", "training.batch_size"),
            f"batch_size {training.batch_size} cannot be divided into {training.accumulation} equal micro-batches",
        )
    if training.epoch_images is not None and training.epoch_images < training.batch_size:
        yield Mistake(
            ("training.epoch_images", "training.batch_size"),
            f"an epoch of {training.epoch_images} images is less than one batch of {training.batch_size}",
        )
    if training.cuda_graphs and training.compile == "off":
        message = "cuda_graphs records compiled networks, but compile is off; set training.compile=all"
        yield Mistake(("training.cuda_graphs", "training.compile"), message)


CHECKS: tuple[Check, ...] = (
    check_image_size,
    check_channels,
    check_decoding,
    check_networks,
    check_norm_pix,
    check_discriminator,
    check_loss_networks,
    check_augmentation_and_penalties,
    check_heads,
    check_terms,
    check_weights,
    check_term_options,
    check_positions,
    check_frozen_encoder,
    check_masking,
    check_optimisation,
)


def _always_on(terms: list[TermSection]) -> bool:
    lasting = [term for term in terms if _never_zero(term.weight)]
    phases = {term.when for term in lasting if isinstance(term.when, str)}
    first = any(isinstance(term.when, FromEpoch | FromShare) and first_share(term.when, 1) == 0 for term in lasting)
    return first or "always" in phases or {"even_epochs", "odd_epochs"} <= phases


def _never_zero(weight: Weight) -> bool:
    if isinstance(weight, Ramp):
        return weight.start * weight.end > 0
    return isinstance(weight, Balanced) or weight != 0
