"""From a configuration to a trainer on whatever processes and devices there are."""

from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from discriminators import Discriminator
from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.config.training_sections import TrainingSection
from perceptual_mae.data.draws import DropPathMasks
from perceptual_mae.data.loading import Batch
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.schedules import Timetable
from perceptual_mae.training.adversary import Adversary
from perceptual_mae.training.compilation import StepDevice
from perceptual_mae.training.initial_discriminator import DiscriminatorStart
from perceptual_mae.training.initial_weights import WarmStart
from perceptual_mae.training.optimizers import discriminator_optimizer, generator_optimizer
from perceptual_mae.training.trainer import Trainer


@torch.no_grad()
def patch_attention(generator: MaskedAutoencoder, accelerator: Accelerator, batch: Batch) -> Tensor:
    """Return how much the class token of the encoder, as it now is, attends to each patch (B, L) of whole images.

    It is the mean over the heads of the last block; the rest of each sum of 1 is the class token's own.
    """
    encoder = generator.encoder
    images = batch.to(accelerator.device).images.to(encoder.mean.dtype)
    with accelerator.autocast():
        return encoder.class_attention(images)[..., 1:].mean(1)


def build_trainer(
    config: RunConfig,
    accelerator: Accelerator,
    timetable: Timetable,
    start: WarmStart | None = None,
    discriminator_start: DiscriminatorStart | None = None,
) -> Trainer:
    """Return the trainer of a run at its first step; its networks have the weights of what they start from."""
    optimizer, training, image = config.optimizer, config.training, config.data.image
    generator = build.build_generator(config.generator, image, training.seed)
    if start is not None:
        start.load(generator)
    if config.generator.freeze_encoder:
        generator.freeze_encoder()
    discriminator = build.build_discriminator(config.discriminator, image, training.seed, generator.encoder)
    if discriminator_start is not None and discriminator is not None:
        discriminator_start.load(discriminator)
    shown = build.shown_image(config.discriminator, image)
    penalties = {
        name: build.build_penalty(config.penalties, name, shown, training.batch_size) for name in config.penalties.root
    }
    peak, betas = build.generator_adam(optimizer, training.batch_size, penalties.get("path_length"))
    adversary, draw_drop_path_masks = None, None
    if generator.drop_path:
        draw_drop_path_masks = DropPathMasks(generator.drop_path, len(generator.encoder.blocks), training.seed)
    if discriminator is not None and config.discriminator is not None:
        loss, kind, by_position = build.build_discriminator_loss(config.losses)
        levels = cast(Discriminator, discriminator).levels
        rate = optimizer.discriminator.lr or peak
        follows = optimizer.discriminator.schedule == "follow"
        micro_batch = training.batch_size // (training.accumulation * accelerator.num_processes)
        parts = partial(build.build_shown_parts, config.discriminator, image, levels, micro_batch, training.seed)
        adversary = Adversary(
            discriminator,
            discriminator_optimizer(discriminator, betas=optimizer.discriminator.betas),
            timetable.rate(rate, 0.0) if follows else (lambda step: rate),
            loss,
            kind,
            build.build_discriminator_input(config.discriminator, levels),
            augmentation=build.build_augmentation(config.augment, shown),
            **penalties,
            by_position=by_position,
            start=build.discriminator_start(config.discriminator, config.losses, training.epochs),
            every=config.discriminator.every,
            shown_parts=build.user_mistakes(parts),
            seed=training.seed,
        )
    networks = build.build_loss_networks(config.losses, image, discriminator, training.seed)
    step_device = build_step_device(training, accelerator)
    if training.checkpoint_activations:
        generator.recompute_activations()
    if discriminator is not None:
        step_device.compile_discriminator(discriminator)
    trainer = Trainer(
        accelerator,
        generator,
        build.build_objective(config.losses, training.log_every),
        generator_optimizer(generator, betas=betas, weight_decay=optimizer.weight_decay),
        timetable.rate(peak, config.schedule.min_lr),
        build.build_training_masks(
            config.masking, generator.grid, training.seed, partial(patch_attention, generator, accelerator)
        ),
        adversary,
        networks,
        draw_drop_path_masks,
        order=training.order,
        clip_norm=optimizer.clip_norm,
        ema_decay=build.ema_decay(training),
    )
    step_device.compile_generator(generator, networks)  # now: averaged weights are a copy of it as it is
    step_device.set_up_steps(trainer)
    return trainer


def build_step_device(training: TrainingSection, accelerator: Accelerator) -> StepDevice:
    """Return how the device of a run computes its steps; UserError where it cannot do so."""
    return StepDevice(
        accelerator.device,
        training.compile,
        cuda_graphs=training.cuda_graphs,
        tf32=accelerator.mixed_precision != "no" if training.tf32 is None else training.tf32,
        cudnn_benchmark=training.cudnn_benchmark,
    )
