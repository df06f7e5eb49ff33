"""The scores of reconstructions in words and as Markdown tables."""

from collections.abc import Mapping
from typing import Any

from perceptual_mae.evaluation.reconstruction.per_image import MASKED
from perceptual_mae.report.formats import markdown_table

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
    "fid": "FID",
    "kid": "KID",
    "is": "Inception Score",
}
DIGITS = {"psnr": 2, "psnr_pooled": 2, "fid": 2, "kid": 5, "is": 3}
"""Behind the point, of the scores for which it is not 4."""
COUNTED = "_identical_images"


def title(report: Mapping[str, Any]) -> str:
    """Say what was scored: weights, images, how they were prepared and masked."""
    transform, mask = report["transform"], report["mask"]
    height, width = transform["image_size"]
    resize = f"resized to {transform['resize']}, " if transform["resize"] else ""
    return (
        f"{report['run']}, step {report['step']}{' (averaged weights)' if report['ema'] else ''}: generator "
        f"{report['generator_sha256'][:12]}; {report['data']}, {report['num_images']} {report['split']} images, "
        f"{resize}{height}x{width}; {mask['kind']} masks, ratio {mask['ratio']:g}, mask seed {mask['seed']}"
    )


def score_table(report: Mapping[str, Any]) -> str:
    """Return a row for each score and a column for each subject."""
    scores = report["scores"]
    names = dict.fromkeys(name for found in scores.values() for name in found if not name.endswith(COUNTED))
    ordered = [name for name in LABELS if name in names] + [name for name in names if name not in LABELS]
    rows = [[_label(name), *(_cell(found, name) for found in scores.values())] for name in ordered]
    rows += [[_label(name), *("unavailable" for _ in scores)] for name in report["unavailable"]]
    return markdown_table(["", *scores], rows)


def baseline_table(report: Mapping[str, Any]) -> str:
    """Return the scores of hidden pixels: a row for this run and for each baseline."""
    subjects = {"this run": report["scores"].get(MASKED, {})}
    subjects |= {name.replace("_", " "): found.get(MASKED, {}) for name, found in report["baselines"].items()}
    names = [name for name in subjects["this run"] if not name.endswith(COUNTED)]
    rows = [[subject, *(_cell(found, name) for name in names)] for subject, found in subjects.items()]
    return markdown_table(["", *(_label(name) for name in names)], rows)


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to read the table."""
    told = ["raw: the whole output; composite: visible pixels pasted in; masked: hidden pixels alone"]
    if not report["learns_visible_pixels"]:
        told.append("raw means little here: the run's loss never looked at visible pixels")
    if report["uses_target_statistics"]:
        told.append("norm_pix: patches were un-normalised with the true patch's mean and deviation")
    for subject, found in report["scores"].items():
        if identical := found.get(f"psnr{COUNTED}"):
            told.append(f"{subject}: {identical} images equal their originals and count with a PSNR of 100 dB")
    if report["unreadable_images"]:
        told.append(f"{report['unreadable_images']} images could not be read and were left out")
    told += [_network(name, facts) for name, facts in report["feature_networks"].items()]
    if set(report["feature_networks"]) - {"inception"}:
        told.append("through another network than Inception, scores compare runs with each other and not with papers")
    return told + [f"{name} is unavailable: {reason}" for name, reason in report["unavailable"].items()]


def _network(name: str, facts: Mapping[str, Any]) -> str:
    """Say what the scores through a network stand on."""
    height, width = facts["input"]
    digest = facts.get("sha256") or facts["encoder_sha256"]
    return (
        f"[{name}]: {facts['num_images']} images, {facts['dim']} features, {height}x{width} pixels, weights "
        f"{digest[:12]}; against the originals of the same images; originals: one half of them against the other"
    )


def _label(name: str) -> str:
    name, bracket, network = name.partition("[")
    return LABELS.get(name, name) + (f", {network.removesuffix(']')}" if bracket else "")


def _cell(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name, "")
    if isinstance(value, float):
        return f"{value:.{DIGITS.get(name.partition('[')[0], 4)}f}"
    return "-" if value is None else str(value)
