"""The runs of the demo: generators loaded once, and what they make of one image under one mask."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perceptual_mae.config.build import build_evaluation_transform
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.demo.masks import draw, nearest_mask
from perceptual_mae.evaluation.finite import check_finite
from perceptual_mae.evaluation.metrics.pixels import decibels, squared_error
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import Size, mask_image, to_uint8
from perceptual_mae.run.folder import distinct_names
from perceptual_mae.run.run import Run

_ONE_AT_A_TIME = threading.Lock()
"""Two forwards at once would take longer than one after the other."""


@dataclass(frozen=True)
class Filling:
    """What a run makes of an image: its mask (L,), its whole output, uint8 (3, H, W), and the PSNR of hidden pixels.

    `psnr` is in dB, of the clamped output, as `pmae evaluate` has it; None where nothing is hidden.
    """

    mask: Tensor
    output: Tensor
    psnr: float | None


@dataclass(frozen=True)
class Method:
    """A run by its name, with its generator and the transform of the images that it takes."""

    name: str
    run: Run
    generator: MaskedAutoencoder
    transform: EvaluationTransform

    @property
    def grid(self) -> Size:
        return self.generator.grid

    @property
    def preparation(self) -> tuple[Size, int | None]:
        """What decides how its images are prepared: runs that have the same see the same pixels."""
        return self.transform.size, self.transform.resize

    def fill(self, image: Tensor, mask: Tensor, grid: Size) -> Filling:
        """Fill in an image, uint8 (3, H, W) of its size, under its nearest mask to a mask (L,) of `grid`.

        Raises UserError where the reconstruction is not finite. Callers in several threads wait for each other.
        """
        own = nearest_mask(mask, grid, self.grid)
        with _ONE_AT_A_TIME, torch.inference_mode():
            images = image[None].float() / 255
            output = self.generator(images, own[None]).pyramid[0].float()
            check_finite(output, f"{self.run.path}: reconstructions")
            hidden = mask_image(own[None], self.grid, self.transform.size).bool().expand_as(images)
            error = squared_error(output.clamp(0, 1), images)[hidden]
            psnr = float(decibels(error.mean())) if len(error) else None
            return Filling(own, to_uint8(output[0]), psnr)


def open_methods(paths: Sequence[Path], *, trust_code: bool = False) -> list[Method]:
    """Load runs; each fills in a grey image once, which also finds damaged weights. Raises UserError as `Run` does."""
    runs = [Run(path, trust_code=trust_code) for path in paths]
    methods = [
        Method(name, run, run.generator().requires_grad_(False), build_evaluation_transform(run.config.data))
        for name, run in zip(distinct_names([run.path for run in runs]), runs, strict=True)
    ]
    for method in methods:
        grey = torch.full((3, *method.transform.size), 128, dtype=torch.uint8)
        method.fill(grey, draw("random", method.grid, 0.5, seed=0), method.grid)
    return methods
