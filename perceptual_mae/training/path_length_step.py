"""StyleGAN2's path-length penalty of the generator: an update of its own, after a step, where it is due."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from discriminators.penalties import PathLength, path_noise
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.seeding import stream
from perceptual_mae.training.compilation import run_eagerly
from perceptual_mae.training.metrics import Scalars

if TYPE_CHECKING:
    from perceptual_mae.training.micro_batch import MicroBatch
    from perceptual_mae.training.trainer import Trainer


def path_length_step(
    trainer: "Trainer", penalty: PathLength, prepared: Sequence["MicroBatch"], progress: TrainingProgress
) -> Scalars:
    """Keep steps of the decoder's input equally long in features: update the generator once, on some of the images."""
    assert trainer.adversary is not None
    trainer.unwrapped_discriminator.requires_grad_(False).eval()
    losses = []
    for batch in trainer.micro_batches(prepared, trainer.generator):
        part = slice(0, penalty.num_images(len(batch.images)))
        coordinates = [(trainer.adversary.seed, progress.step, index) for index in batch.indices[part].tolist()]
        # Other attention kernels and compiled networks have no second derivative.
        with sdpa_kernel(SDPBackend.MATH), run_eagerly():
            drop_path_masks = None if batch.drop_path_masks is None else batch.drop_path_masks[part]
            reconstruction = trainer.generator(batch.images[part], batch.mask[part], drop_path_masks)
            shown = None if batch.shown is None else replace(batch.shown, num_images=part.stop)
            fake = trainer.fake_images(replace(batch, images=batch.images[part], shown=shown), reconstruction)
            features = trainer.unwrapped_discriminator(fake).features if penalty.target == "features" else fake[:1]
            # Where it is used: a CPU takes longer to draw and send it than a GPU for the whole step.
            generators = [stream("path", *each, device=trainer.accelerator.device) for each in coordinates]
            noise = path_noise([feature.shape[1:] for feature in features], generators)
            loss = penalty(features, reconstruction.latent, noise)
            # Levels that the penalty does not read need a gradient too, where processes wait for all of them.
            unread = 0 * torch.stack([level.sum() for level in reconstruction.pyramid]).sum()
            trainer.accelerator.backward((loss + unread) / len(prepared))
        losses.append(loss.detach())
    penalty.finish(trainer.sum_over_processes)
    scalars = {"penalty/path_length": torch.stack(losses).mean(), "path_length/mean": penalty.expected}
    return scalars | trainer.update("path_length", trainer.optimizer, trainer.clip_norm)
