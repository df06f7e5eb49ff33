"""How a run's scores are told in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def headline(scores: Mapping[str, Any]) -> str:
    """Return one line of held-out scores: PSNR of the composite and of hidden pixels, SSIM where it is defined."""
    hidden = scores.get("psnr_masked")
    parts = [f"PSNR {scores['psnr']:.2f} dB"]
    parts += [f"hidden pixels {hidden:.2f} dB"] if hidden is not None else []
    parts += [f"SSIM {scores['ssim']:.3f}"] if "ssim" in scores else []
    return "held-out " + ", ".join(parts)


def farewell(path: Path, summary: Mapping[str, Any]) -> str:
    """Return the last lines of a run: its scores beside the baselines, where it lies and what to do next."""
    rows = {"this run": summary, **{name.replace("_", " "): row for name, row in summary["baselines"].items()}}
    lines = [f"{summary['num_images']} held-out images ({summary['split']}), ratio {summary['ratio']:g}, fixed masks:"]
    lines.append(f"  {'':18}{'PSNR':>8}{'hidden':>8}{'SSIM':>8}")
    for name, row in rows.items():
        cells = [_cell(row.get(key), digits) for key, digits in (("psnr", 2), ("psnr_masked", 2), ("ssim", 3))]
        lines.append(f"  {name:18}{''.join(cells)}")
    if summary["unreadable_images"]:
        lines.append(f"  {summary['unreadable_images']} images could not be read and were left out: see log.txt")
    if summary["uses_target_statistics"]:
        lines.append("  (norm_pix: patches were un-normalised with the true patch's mean and deviation)")
    lines.append(f"the run lies in {path}: summary.json, metrics.jsonl, images/, checkpoints/")
    lines.append(f"next: pmae visualize {path}")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>8}"
