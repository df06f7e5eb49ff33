"""What a run makes of its held-out images: scores and the sample grid, the same images under the same masks always."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.draws import FixedMasks
from perceptual_mae.data.loading import evaluation_batches
from perceptual_mae.data.subsets import random_subset
from perceptual_mae.evaluation.processes import as_main_process
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.evaluation.reconstruction.scoring import score_training
from perceptual_mae.evaluation.representation.features import pool
from perceptual_mae.evaluation.representation.online import open_online, score_online
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder, Reconstruction
from perceptual_mae.training.trainer import Trainer
from perceptual_mae.visualization.image_grid import reconstruction_columns, sheet

CheckFinite = Callable[[Tensor, str], None]
"""Stops the run where a tensor of this name has values that are not finite."""


class HeldOut:
    """The held-out images of a run. They are opened before the networks are built, which `score` and `grid` take."""

    def __init__(self, config: RunConfig, train_data: ImageDataset) -> None:
        self.config = config
        self.images = open_held_out(config, limit=config.evaluation.limit)
        self.representation_data = open_online(config, train_data, self.images)

    def score(
        self, trainer: Trainer, accelerator: Accelerator, check_finite: CheckFinite, *, baselines: bool = False
    ) -> dict[str, Any]:
        """Score `evaluation.limit` images, by averaged weights where the run keeps them; the same on all processes.

        Reconstructions are made under fixed masks; the representation is scored on whole images. With `baselines` the
        fillings that learn nothing are scored, too.
        """
        generator, batch_size = scored_generator(trainer), self.config.evaluation.batch_size

        def reconstruct(images: Tensor, mask: Tensor) -> Reconstruction:
            return reconstruct_with(generator, images, mask, check_finite)

        def encode(images: Tensor) -> dict[str, Tensor]:
            """Return the mean patch token (B, D) of whole images (B, C, H, W) in [0, 1]."""
            mean = pool(generator.encoder(images.to(generator.encoder.mean.dtype)))["mean"]
            check_finite(mean, "features")
            return {"mean": mean}

        scores = score_training(
            reconstruct,
            self.images,
            self.masks(generator),
            accelerator,
            channels=generator.channels,
            batch_size=batch_size,
            patch_size=generator.patch_size,
            baselines=baselines,
        )
        scores["representation"] = score_online(encode, self.representation_data, accelerator, batch_size=batch_size)
        return as_main_process(scores)

    @torch.no_grad()
    def grid(self, trainer: Trainer, device: torch.device, check_finite: CheckFinite) -> Image.Image:
        """Return the sample grid of `evaluation.grid_images` images."""
        count, dataset = self.config.evaluation.grid_images, self.images.dataset
        indices, generator = random_subset(len(dataset), count), scored_generator(trainer)
        batch = next(evaluation_batches(dataset, self.images.transform, batch_size=count, indices=indices))
        mask = self.masks(generator)(batch)
        images = batch.to(device).images
        return sheet(reconstruction_columns(images, reconstruct_with(generator, images, mask, check_finite)))

    def masks(self, generator: MaskedAutoencoder) -> FixedMasks:
        """Return the masks of held-out images."""
        return build.build_fixed_masks(self.config.masking, generator.grid, self.config.evaluation.seed)


def scored_generator(trainer: Trainer) -> MaskedAutoencoder:
    """Return the generator with averaged weights, where the run keeps them."""
    scored = trainer.ema.module if trainer.ema is not None else trainer.unwrapped_generator
    assert isinstance(scored, MaskedAutoencoder)
    return scored


def reconstruct_with(
    generator: MaskedAutoencoder, images: Tensor, mask: Tensor, check_finite: CheckFinite
) -> Reconstruction:
    """Return the reconstruction of images (B, C, H, W) in [0, 1] under masks (B, L), checked to be finite."""
    reconstruction: Reconstruction = generator(images.to(generator.encoder.mean.dtype), mask)
    check_finite(reconstruction.pyramid[0], "reconstruction")
    return reconstruction
