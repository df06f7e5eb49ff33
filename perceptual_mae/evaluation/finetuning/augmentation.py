"""What fine-tuning does to its images: timm's RandAugment, erasing and mixing, with draws that we can repeat.

timm draws from the global generators of Python, NumPy and torch. Here each draw belongs to (seed, pass, sample) or
(seed, step): the generators are set for the call and put back, so that workers and processes change nothing.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from perceptual_mae.data.transforms import TrainTransform
from perceptual_mae.evaluation.finetuning.recipes import FinetuneRecipe
from perceptual_mae.images import Size
from perceptual_mae.seeding import stream

TRANSLATION = 0.45
"""The largest shift of RandAugment, a share of the shorter side, as timm sets it."""


class FinetuneTransform:
    """Random crop and flip, then RandAugment, then a rectangle of noise (erasing); uint8 (3, H, W) to (3, *size).

    `mean` and `std` (3,) of images in [0, 1]: RandAugment fills with the mean, erasing with mean + std * N(0, 1), cut
    at black and white. Called with the generator of all draws.
    """

    def __init__(self, size: Size, mean: Tensor, std: Tensor, recipe: FinetuneRecipe) -> None:
        # timm's create_transform would crop PIL images with global draws; ours crops the same boxes, on tensors.
        self.crop = TrainTransform(size, crop_scale=recipe.crop_scale, flip=recipe.flip)
        self.mean, self.std = mean.detach().cpu().view(-1, 1, 1), std.detach().cpu().view(-1, 1, 1)
        self.rand_augment = self.erasing = None
        if recipe.rand_augment:
            from timm.data.auto_augment import rand_augment_transform
            from timm.data.transforms import str_to_pil_interp

            hints = {
                "translate_const": int(TRANSLATION * min(size)),
                "img_mean": tuple(round(255 * value) for value in self.mean.flatten().tolist()),
                "interpolation": str_to_pil_interp("bicubic"),
            }
            self.rand_augment = rand_augment_transform(recipe.rand_augment, hints)
        if recipe.erasing:
            from timm.data.random_erasing import RandomErasing

            self.erasing = RandomErasing(recipe.erasing, mode="pixel", device="cpu")

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        image = self.crop(image, generator)
        if self.rand_augment is None and self.erasing is None:
            return image
        with seeded_globals(generator):
            if self.rand_augment is not None:
                image = F.pil_to_tensor(self.rand_augment(F.to_pil_image(image)))
            if self.erasing is not None:
                normalised = self.erasing((image.float() / 255 - self.mean) / self.std)
                image = (normalised * self.std + self.mean).clamp(0, 1).mul(255).round().to(torch.uint8)
        return image


class Mixing:
    """Mixup or CutMix of pairs, one draw for the whole batch of a step (timm's batch mode).

    timm pairs image i with the i-th from the end. Image i and the one half a batch further are paired here: both lie in
    the same micro-batch of the same process whenever its share of the batch is even, so that how the batch is cut
    changes nothing.
    """

    def __init__(self, recipe: FinetuneRecipe, num_classes: int, seed: int) -> None:
        from timm.data import Mixup

        self.seed = seed
        self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes)

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) mixed with their partners, and targets (B, classes) that sum to 1; B is even."""
        order = pairing(len(images)).to(images.device)
        with seeded_globals(stream("mixing", self.seed, step)):
            mixed, targets = self.mixup(images[order], labels[order])
        back = order.argsort()
        return mixed[back], targets[back]


def pairing(size: int) -> Tensor:
    """Return the order in which an image's partner from the end is the one half a batch further."""
    first, second = torch.arange(size).chunk(2)
    return torch.cat([first, second.flip(0)])


@contextmanager
def seeded_globals(generator: torch.Generator) -> Iterator[None]:
    """Set the global CPU generators from one draw of `generator`, and put them back."""
    seed = int(torch.randint(2**31, (), generator=generator))
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the GPU's too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
