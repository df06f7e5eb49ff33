"""R1 in a training step: the penalty of one number an image, whatever map its logits are."""

import copy

import pytest
import torch

from conftest import debug_trainer, random_batches
from perceptual_mae.images import pyramid
from perceptual_mae.schedules import TrainingProgress


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ls_gan", ["discriminator.form=patch"]),
        ("msg_gan", ["discriminator.equalized_lr=true"]),
        ("stylegan2_ada_p", []),
    ],
)
def test_the_penalty_is_that_of_an_images_mean_logit(method: str, options: list[str]) -> None:
    """Summed over a map of n logits it would be n^2 times as much: 256 times for the 4 x 4 of LS-GAN at 224 pixels."""
    r1 = ["penalties={r1: {gamma: 0.5, every: 16}}"]
    trainer = debug_trainer(method, *options, *r1, dtype=torch.float64)
    discriminator = copy.deepcopy(trainer.unwrapped_discriminator)
    (batch,) = batches = random_batches(4)
    scalars = trainer.step(batches, TrainingProgress(1, 0, 0.0))
    levels = pyramid((batch.images.double() / 255), discriminator.levels)
    levels = tuple(level.requires_grad_() for level in levels)
    logits = discriminator(levels).logits
    if method == "ls_gan":
        assert logits[0].numel() > 1
    gradients = torch.autograd.grad(logits.flatten(1).mean(1).sum(), levels)
    squares = [gradient.square().sum() / 4 / 4**number for number, gradient in enumerate(gradients)]
    assert scalars["penalty/r1"].item() == pytest.approx((16 * 0.5 / 2 * sum(squares) / 4).item(), rel=1e-4)
