"""METRICS: what reconstructions are scored by, one line a score.

A line of the table is all that a metric needs besides its function: `pmae evaluate` finds its name, its report and its
reason for not being available here.
"""

from functools import partial

from perceptual_mae.evaluation.metrics import distribution, lpips, pixels, ssim
from perceptual_mae.evaluation.metrics.protocol import ImageMetric, Metric, SetMetric
from perceptual_mae.losses.frequency import laplacian_error

METRICS: dict[str, Metric] = {
    "l1": ImageMetric(lambda _: pixels.absolute_error, masked=True),
    "mse": ImageMetric(lambda _: pixels.squared_error, masked=True),
    "psnr": ImageMetric(
        lambda _: pixels.squared_error, masked=True, from_mean=pixels.decibels, summarise=pixels.summarise_psnr
    ),
    "ssim": ImageMetric(ssim.prepare_ssim, masked=True, versions=("kornia",)),
    "ms_ssim": ImageMetric(ssim.prepare_ms_ssim, versions=("pytorch-msssim",)),
    "box_ssim": ImageMetric(ssim.prepare_box_ssim),
    "lpips_alex": ImageMetric(partial(lpips.prepare, net="alex"), versions=("lpips",), network=True),
    "lpips_vgg": ImageMetric(partial(lpips.prepare, net="vgg"), versions=("lpips",), network=True),
    "lpips_squeeze": ImageMetric(partial(lpips.prepare, net="squeeze"), versions=("lpips",), network=True),
    "high_frequency": ImageMetric(lambda _: laplacian_error, masked=True),
    "patch_std": ImageMetric(pixels.prepare_patch_std, masked=True, relative=True),
    "fid": SetMetric(distribution.prepare, versions=("clean-fid",)),
    "kid": SetMetric(distribution.prepare, versions=("clean-fid",)),
    "is": SetMetric(distribution.prepare, versions=("clean-fid",)),
}

__all__ = ["METRICS"]
