"""From a configuration to a trainer on whatever processes and devices there are."""

import warnings
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from perceptual_mae import build
from perceptual_mae.adversary import Adversary
from perceptual_mae.config import RunConfig
from perceptual_mae.errors import UserError
from perceptual_mae.optimizers import discriminator_optimizer, generator_optimizer
from perceptual_mae.trainer import Trainer

Value = TypeVar("Value")


def make_accelerator(config: RunConfig, path: Path | None = None) -> Accelerator:
    """Return Accelerate's view of processes, device and precision; the trackers write to `path`."""
    # Buffers are constants here (positions, image statistics): there is nothing to send around at every forward.
    constant_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    # Accelerate keeps the precision for the whole process; the next run of a notebook or a sweep may want another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=config.training.precision,
        log_with=list(config.tracking.trackers) or None,
        project_dir=path,
        kwargs_handlers=[constant_buffers],
    )
    if config.training.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("training.precision: fp16 needs a GPU; use bf16 or no")  # Accelerate would train in float32
    return accelerator


def as_main_process(value: Value) -> Value:
    """Return the main process's value on all processes."""
    shared: Value = broadcast_object_list([value])[0]
    return shared


def build_trainer(config: RunConfig, accelerator: Accelerator, timetable: build.Timetable) -> Trainer:
    """Return the trainer of a run at its first step."""
    optimizer, training = config.optimizer, config.training
    generator = build.build_generator(config)
    discriminator = build.build_discriminator(config)
    peak, betas = build.generator_adam(config)
    adversary = None
    if discriminator is not None:
        loss, center = build.build_discriminator_loss(config)
        rate = optimizer.discriminator.lr
        follows = optimizer.discriminator.schedule == "follow"
        adversary = Adversary(
            discriminator,
            discriminator_optimizer(discriminator, betas=optimizer.discriminator.betas),
            timetable.rate(rate, 0.0) if follows else (lambda step: rate),
            loss,
            center,
            augmentation=build.build_augmentation(config),
            r1=build.build_penalty(config, "r1"),
            path_length=build.build_penalty(config, "path_length"),
            seed=training.seed,
        )
    return Trainer(
        accelerator,
        generator,
        build.build_objective(config),
        generator_optimizer(generator, betas=betas, weight_decay=optimizer.weight_decay),
        timetable.rate(peak, config.schedule.min_lr),
        build.TrainingMasks(config, generator.grid),
        adversary,
        build.build_loss_networks(config, discriminator),
        build.TrainingPaths(generator.drop_path, len(generator.encoder.blocks), training.seed),
        order=training.order,
        clip_norm=optimizer.clip_norm,
        ema_decay=build.ema_decay(config),
    )
