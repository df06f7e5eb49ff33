"""Scores of images as a Markdown table, for `pmae evaluate` and `pmae compare-images`."""

from collections.abc import Mapping
from typing import Any

from perceptual_mae.report.markdown_table import markdown_table

LABELS = {
    "l1": "L1",
    "mse": "MSE",
    "psnr": "PSNR, dB",
    "psnr_pooled": "PSNR pooled, dB",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "box_ssim": "SSIM, 3x3 box",
    "lpips_alex": "LPIPS, AlexNet",
    "lpips_vgg": "LPIPS, VGG",
    "lpips_squeeze": "LPIPS, SqueezeNet",
    "high_frequency": "high-frequency error",
    "patch_std": "spread within a patch",
    "fid": "FID",
    "kid": "KID",
    "is": "Inception Score",
}
DIGITS = {"psnr": 2, "psnr_pooled": 2, "fid": 2, "kid": 5, "is": 3}
"""Behind the point, of the scores for which it is not 4."""
COUNTED = "_identical_images"


def score_table(report: Mapping[str, Any]) -> str:
    """Return a row for each score and a column for each subject."""
    scores = report["scores"]
    names = dict.fromkeys(name for row in scores.values() for name in row if not name.endswith(COUNTED))
    ordered = [name for name in LABELS if name in names] + [name for name in names if name not in LABELS]
    rows = [[label(name), *(cell(row, name) for row in scores.values())] for name in ordered]
    rows += [[label(name), *("unavailable" for _ in scores)] for name in report["unavailable"]]
    return markdown_table(["", *scores], rows)


def label(name: str) -> str:
    """Return what a score is called in tables, with the network it comes from."""
    name, bracket, network = name.partition("[")
    return LABELS.get(name, name) + (f", {network.removesuffix(']')}" if bracket else "")


def cell(row: Mapping[str, Any], name: str) -> str:
    """Return a score of a row, rounded; nothing where the row has no such score."""
    value = row.get(name, "")
    if isinstance(value, float):
        return f"{value:.{DIGITS.get(name.partition('[')[0], 4)}f}"
    return "-" if value is None else str(value)


def closing_notes(report: Mapping[str, Any], reference: str) -> list[str]:
    """Return what is to be known of scores through networks, and of those that are not there.

    reference: the set of images that the others were compared with.
    """
    lines = []
    for subject, row in report["scores"].items():
        if identical := row.get(f"psnr{COUNTED}"):
            lines.append(f"{subject}: {identical} images equal their originals and count with a PSNR of 100 dB")
    lines += [_network(name, metadata, reference) for name, metadata in report["feature_networks"].items()]
    if set(report["feature_networks"]) - {"inception"}:
        lines.append("through another network than Inception, scores compare runs with each other and not with papers")
    return lines + [f"{name} is unavailable: {reason}" for name, reason in report["unavailable"].items()]


def _network(name: str, metadata: Mapping[str, Any], reference: str) -> str:
    """Say how the scores through a network were computed."""
    numbers = metadata["num_images"]
    images = " and ".join(map(str, numbers.values())) if isinstance(numbers, Mapping) else numbers
    height, width = metadata["input"]
    digest = metadata.get("sha256") or metadata.get("encoder_sha256") or "not stated"
    return (
        f"[{name}]: {images} images, {metadata['dim']} features, {height}x{width} pixels, weights {digest[:12]}; "
        f"against {metadata['reference']}; {reference}: one half of them against the other"
    )
