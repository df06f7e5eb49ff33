"""From a configuration to its parts. After this nobody reads the configuration for what it builds."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from discriminators import Discriminator
from discriminators.augmentation.ada import ADA
from discriminators.penalties import lazy_adam
from perceptual_mae.config.parsing import LossNetworkSection, RunConfig
from perceptual_mae.data.loading import EpochPlan
from perceptual_mae.data.transforms import EvaluationTransform, TrainTransform
from perceptual_mae.errors import UserError, user_mistakes
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import pyramid_sizes
from perceptual_mae.loss_networks import LIVE, LossNetworks
from perceptual_mae.losses.adversarial import ADVERSARIAL, adversarial_discriminator
from perceptual_mae.objective.objective import TERMS, Objective, WeightedTerm
from perceptual_mae.schedules import Timetable, value_at
from perceptual_mae.seeding import stream_seed


def build_generator(config: RunConfig) -> MaskedAutoencoder:
    """Return the generator with weights drawn from the run's seed."""
    data = config.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("generator", config.training.seed))
        return user_mistakes(
            lambda: MaskedAutoencoder(data.size, len(data.mean), data.mean, data.std, **config.generator.options())
        )


def build_discriminator(config: RunConfig) -> nn.Module | None:
    """Return the discriminator with weights drawn from the run's seed, or None for a plain MAE."""
    if config.discriminator is None:
        return None
    section, data = config.discriminator, config.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("discriminator", config.training.seed))
        discriminator: nn.Module = user_mistakes(lambda: section.build(pyramid_sizes(data.size), len(data.mean)))
    if not isinstance(discriminator, Discriminator):
        raise UserError(
            f"discriminator.kind: {section.kind} is no discriminator: it needs `levels` and `forward(pyramid)`"
        )
    return discriminator.to(memory_format=torch.channels_last)


def build_objective(config: RunConfig) -> Objective:
    """Return the generator's objective: the table's terms with weights, phases, options and networks of the run."""
    keys = loss_network_keys(config)
    return Objective(
        {
            name: WeightedTerm(TERMS[name], section.weight, section.when, section.options(), keys.get(name, LIVE))
            for name, section in config.losses.items()
        },
        config.training.log_every,
    )


def loss_network_keys(config: RunConfig) -> dict[str, str]:
    """Return, by term, the key of the network it compares through; the same settings have the same key."""
    keys: dict[str, str] = {}
    known: list[LossNetworkSection] = []
    for name, section in config.losses.networks().items():
        if section not in known:
            known.append(section)
        number = 1 + [other for other in known if other.kind == section.kind].index(section)
        keys[name] = re.sub(r"\W", "_", section.kind) + (f"_{number}" if number > 1 else "")
    return keys


def build_loss_networks(config: RunConfig, discriminator: nn.Module | None) -> LossNetworks:
    """Return the networks that terms compare through, beside the live discriminator, with weights from their files."""
    fixed: dict[str, nn.Module] = {}
    copies: dict[str, nn.Module] = {}
    sections, seed = config.losses.networks(), stream_seed("loss network", config.training.seed)
    for name, key in loss_network_keys(config).items():
        if key == LIVE or key in fixed or key in copies:
            continue
        section, place = sections[name], f"losses.{name}.network"
        positional = (discriminator,) if section.watches_discriminator else (config.data.size, len(config.data.mean))
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = section.build(*positional)
        except ImportError as mistake:
            raise UserError(f"{place}: {mistake}; install it: pip install {mistake.name}") from mistake
        except ValueError as mistake:
            raise UserError(f"{place}: {' '.join(str(mistake).split())}") from mistake
        if not isinstance(network, nn.Module):
            raise UserError(f"{place}.kind: {section.kind} is no network; it must be a torch.nn.Module")
        (copies if section.watches_discriminator else fixed)[key] = network
    return LossNetworks(fixed, copies)


def build_discriminator_loss(config: RunConfig) -> tuple[Callable[[Tensor, Tensor], Tensor], float]:
    """Return the discriminator's loss and the decision level of its logits.

    Without an adversarial term the discriminator still learns to tell real from fake: its features are compared.
    """
    section = dict(config.losses.items()).get("adversarial")
    options = section.options() if section is not None else {}
    # Options that do not go together are refused by the loss itself: ask it before training does.
    user_mistakes(lambda: adversarial_discriminator(torch.zeros(1), torch.zeros(1), **options))
    kind = options.get("kind", "least_squares")
    return partial(adversarial_discriminator, **options), ADVERSARIAL[kind].center


def build_augmentation(config: RunConfig) -> ADA | None:
    """Return what the discriminator's eyes go through, or None."""
    section, data = config.augment, config.data
    if section is None:
        return None
    augmentation: ADA = user_mistakes(lambda: section.build(pyramid_sizes(data.size), len(data.mean)))
    return augmentation


def build_penalty(config: RunConfig, name: str) -> Any:
    """Return a gradient penalty of the run by its name in the table, or None."""
    section = config.penalties.get(name)
    if section is None:
        return None
    penalty = user_mistakes(lambda: section.build(config.data.size, config.training.batch_size))
    return None if getattr(penalty, "weight", 1) == 0 else penalty


def ema_decay(config: RunConfig) -> float | None:
    """Return the decay a step whose half-life is `training.ema_kimg` thousand images, or None for no average."""
    training = config.training
    return 0.5 ** (training.batch_size / (training.ema_kimg * 1000)) if training.ema_kimg else None


def generator_adam(config: RunConfig) -> tuple[float, tuple[float, float]]:
    """Return the generator's peak learning rate and betas, corrected where path length takes steps of its own."""
    optimizer, path_length = config.optimizer, build_penalty(config, "path_length")
    rate = optimizer.learning_rate(config.training.batch_size)
    return lazy_adam(rate, optimizer.betas, path_length.every) if path_length is not None else (rate, optimizer.betas)


def build_train_transform(config: RunConfig) -> TrainTransform:
    data = config.data
    return TrainTransform(
        data.size,
        crop=data.crop,
        crop_scale=data.crop_scale,
        flip=data.flip,
        color_jitter=data.color_jitter,
        grayscale=data.grayscale,
    )


def build_evaluation_transform(config: RunConfig) -> EvaluationTransform:
    return EvaluationTransform(config.data.size, config.data.eval_resize)


def final_ratio(config: RunConfig) -> float:
    """Return the masking ratio at the end of training: the one that held-out images are masked with."""
    return value_at(config.masking.ratio, 1.0)


def build_plan(config: RunConfig, num_images: int) -> EpochPlan:
    training = config.training
    return EpochPlan(num_images, training.batch_size, seed=training.seed, epoch_images=training.epoch_images)


def build_timetable(config: RunConfig, steps_per_epoch: int) -> Timetable:
    total = steps_per_epoch * config.training.epochs
    schedule = config.schedule
    warmup = schedule.warmup_ratio * total if schedule.warmup_ratio is not None else None
    epochs = schedule.warmup_epochs if schedule.warmup_epochs is not None else 0.0
    return Timetable(steps_per_epoch, total, round(warmup if warmup is not None else epochs * steps_per_epoch))
