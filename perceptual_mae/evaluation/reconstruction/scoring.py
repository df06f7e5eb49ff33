"""Reconstruction scores of held-out images in one pass, for `pmae evaluate` and for a run while it trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.data.loading import Batch
from perceptual_mae.evaluation.accumulators import Accumulator, Gather, merge_into
from perceptual_mae.evaluation.metrics.protocol import Setting
from perceptual_mae.evaluation.metrics.selection import Chosen, choose, find_weights
from perceptual_mae.evaluation.reconstruction.data import HeldOut
from perceptual_mae.evaluation.reconstruction.inference import Reconstruct, reconstruct_images
from perceptual_mae.evaluation.reconstruction.per_image import COMPOSITE, MASKED, RAW, ImageScores, ImageTable
from perceptual_mae.progress import OnProgress, no_progress

OWN_METRICS = ("psnr", "ssim")


def score_reconstructions(
    reconstruct: Reconstruct,
    data: HeldOut,
    draw_masks: Callable[[Batch], Tensor],
    accelerator: Accelerator,
    chosen: Chosen,
    *,
    batch_size: int,
    patch_size: int,
    baselines: bool = False,
    accumulators: Sequence[Accumulator] = (),
    on_progress: OnProgress = no_progress,
) -> tuple[dict[str, Any], ImageTable | None]:
    """Reconstruct `data` once; return the chosen scores with how many images they are of, and the table of images.

    `accumulators` get the batches, too, and add to the report. With several processes only the main one has more than
    the numbers of images.
    """
    scores = ImageScores(chosen.measures)
    everything: list[Accumulator] = [scores, *accumulators, *chosen.accumulators]
    reconstruct_images(
        reconstruct,
        data.dataset,
        data.indices,
        data.transform,
        draw_masks,
        accelerator,
        everything,
        batch_size=batch_size,
        patch_size=patch_size,
        workers=data.workers,
        baselines=baselines,
        on_progress=on_progress,
    )
    gather = Gather(accelerator)
    num_images = int(gather.total(torch.tensor(float(scores.num_images), dtype=torch.float64)))
    report: dict[str, Any] = {"num_images": num_images, "unreadable_images": len(data.indices) - num_images}
    report |= {"networks": chosen.networks, "feature_networks": {}, "scores": {}, "unavailable": chosen.unavailable}
    for accumulator in everything:
        merge_into(report, accumulator.compute(gather))
    return report, scores.table


def score_training(
    reconstruct: Reconstruct,
    data: HeldOut,
    draw_masks: Callable[[Batch], Tensor],
    accelerator: Accelerator,
    *,
    channels: int,
    batch_size: int,
    patch_size: int,
    baselines: bool = False,
) -> dict[str, Any]:
    """Return PSNR and SSIM as a run's summary has them: `psnr` of composites, `psnr_raw`, `psnr_masked` and so on.

    `*_pooled` come from the mean error of all images; SSIM is left out where images are too small for its window. With
    several processes only the main one has scores.
    """
    setting = Setting(data.transform.size, channels, accelerator.device, len(data.indices), find_weights, patch_size)
    report, _ = score_reconstructions(
        reconstruct,
        data,
        draw_masks,
        accelerator,
        choose(OWN_METRICS, (), setting),
        batch_size=batch_size,
        patch_size=patch_size,
        baselines=baselines,
    )
    scores = _flat(report["scores"]) | {"num_images": report["num_images"]}
    if baselines:
        # A filling keeps the visible pixels: its whole output is its composite.
        scores["baselines"] = {
            name: _flat(scored | {RAW: scored[COMPOSITE]}) for name, scored in report.get("baselines", {}).items()
        }
    return scores


def _flat(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {key: scores[region][name] for key, (region, name) in SUMMARY_KEYS.items() if name in scores.get(region, {})}


SUMMARY_KEYS = {
    "psnr": (COMPOSITE, "psnr"),
    "psnr_raw": (RAW, "psnr"),
    "psnr_masked": (MASKED, "psnr"),
    "ssim": (COMPOSITE, "ssim"),
    "ssim_raw": (RAW, "ssim"),
    "psnr_pooled": (COMPOSITE, "psnr_pooled"),
    "psnr_masked_pooled": (MASKED, "psnr_pooled"),
}
"""The keys of summary.json, and where a report has their values."""
