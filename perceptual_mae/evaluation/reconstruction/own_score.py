"""Held-out reconstruction scores under fixed masks: PSNR and SSIM, beside three fillings that learn nothing.

`raw` is the generator's whole output, `composite` has the visible pixels pasted in, `masked` looks at hidden pixels
alone. The raw output of a generator that was trained on hidden patches only is meaningless where the image is visible.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pytorch_msssim import ssim
from torch import Tensor

from perceptual_mae.data.loading import Batch
from perceptual_mae.evaluation.reconstruction.baselines import BASELINES
from perceptual_mae.generator.masked_autoencoder import Reconstruction
from perceptual_mae.images import check_unit_range, mask_image

IDENTICAL = 1e-10
"""The mean squared error that stands for identical images: 100 dB."""


def psnr(error: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of mean squared errors of images in [0, 1], at most 100."""
    return -10 * torch.log10(error.clamp_min(IDENTICAL))


def squared_errors(fake: Tensor, real: Tensor) -> Tensor:
    """Return each image's mean squared error (B,)."""
    return (fake - real).square().flatten(1).mean(1)


def hidden_squared_errors(fake: Tensor, real: Tensor, hidden: Tensor) -> Tensor:
    """Return each image's mean squared error over hidden pixels (B,); hidden: (B, 1, H, W), 1 = hidden."""
    total = ((fake - real).square() * hidden).flatten(1).sum(1)
    return total / (hidden.flatten(1).sum(1) * fake.shape[1])


def image_scores(fake: Tensor, real: Tensor, mask: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return each image's scores (B,) for a reconstruction and its original, both float32 in [0, 1]."""
    check_unit_range(fake, "a reconstruction")
    check_unit_range(real, "an original")
    size = (real.shape[2], real.shape[3])
    hidden = mask_image(mask, grid, size)
    composite = torch.lerp(real, fake, hidden)
    error = squared_errors(composite, real)
    scores = {
        "error": error,
        "error_masked": hidden_squared_errors(fake, real, hidden),
        "psnr": psnr(error),
        "psnr_raw": psnr(squared_errors(fake, real)),
    }
    scores["psnr_masked"] = psnr(scores["error_masked"])
    if min(size) >= 11:  # the Gaussian window of the reported SSIM
        scores["ssim"] = ssim(composite, real, data_range=1.0, size_average=False)
        scores["ssim_raw"] = ssim(fake, real, data_range=1.0, size_average=False)
    return scores


@torch.no_grad()
def score_reconstructions(
    reconstruct: Callable[[Tensor, Tensor], Reconstruction],
    batches: Iterable[Batch],
    draw_masks: Callable[[Batch], Tensor],
    accelerator: Accelerator,
    patch_size: int,
    *,
    baselines: bool = False,
) -> dict[str, Any]:
    """Score held-out reconstructions (and the baselines on the same masks); means over images.

    `psnr` and `ssim` are of the composite; `*_masked` of hidden pixels; `*_pooled` from the mean error of all images.
    Processes take batches in turns, no image counts twice.
    """
    rows: list[dict[str, dict[str, float]]] = []
    for number, batch in enumerate(batches):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        mask = draw_masks(batch)
        batch = batch.to(accelerator.device)
        reconstruction = reconstruct(batch.images, mask)
        hidden, grid = reconstruction.mask, reconstruction.grid
        candidates = {"generator": reconstruction.pyramid[0].float().clamp(0, 1)}
        if baselines:
            candidates |= {name: fill(batch.images, hidden, patch_size) for name, fill in BASELINES.items()}
        scored = {name: image_scores(fake, batch.images, hidden, grid) for name, fake in candidates.items()}
        lists = {name: {key: value.tolist() for key, value in scores.items()} for name, scores in scored.items()}
        rows += [
            {name: {key: values[i] for key, values in scores.items()} for name, scores in lists.items()}
            for i in range(len(batch.images))
        ]
    rows = gather_object(rows)
    means = {name: summarise([row[name] for row in rows]) for name in (rows[0] if rows else {})}
    own = means.pop("generator", {})
    return own | {"num_images": len(rows)} | ({"baselines": means} if baselines else {})


def summarise(rows: list[dict[str, float]]) -> dict[str, float | None]:
    """Average per-image scores; PSNR is pooled from the mean error too. None where nothing is hidden."""
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    pooled = {
        f"psnr{suffix}_pooled": -10 * math.log10(max(mean[f"error{suffix}"], IDENTICAL))
        for suffix in ("", "_masked")
        if not math.isnan(mean[f"error{suffix}"])
    }
    kept = {key: value for key, value in mean.items() if not key.startswith("error")} | pooled
    return {key: None if math.isnan(value) else round(value, 4) for key, value in kept.items()}
