"""The parts' results as one page of tables: gpu.md."""

import json
from pathlib import Path
from typing import Any

from perceptual_mae.files import write_atomically
from perceptual_mae.report.markdown_table import markdown_table

Rows = list[list[str]]
GIGA = 1e9


def write_page(out: Path) -> None:
    """Write gpu.md of whatever parts have left their file."""
    sections = [("correctness", correctness), ("speed", speed), ("profile", profile), ("cifar", cifar)]
    lines = ["# On a GPU", ""]
    for name, tables in sections:
        file = out / f"{name}.json"
        if file.exists():
            results = json.loads(file.read_text())
            lines += [f"## {name.capitalize()}", "", f"{results['device']}, torch {results['torch']}", ""]
            lines += tables(results)
    write_atomically(out / "gpu.md", "\n".join(lines) + "\n")


def correctness(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            each["method"],
            "yes" if each["agrees"] else "**no**",
            f"{each['loss_difference']:.1e} ({each['worst_loss']})",
            *(f"{each['cosines'][network]:.6f}" if network in each["cosines"] else "" for network in NETWORKS),
            "yes" if each["bf16_is_finite"] else "**no**",
        ]
        for each in results["methods"]
    ]
    heads = ["method", "agrees", "largest difference of a loss", "cosine, generator", "cosine, discriminator"]
    resumed = [
        f"- {each['method']}: {len(each['differing'])} of {each['tensors']} tensors differ after a resume"
        + (f"; not deterministic: {', '.join(each['without_deterministic_kernel'])}" if each["differing"] else "")
        for each in results["resume"]
    ]
    tests = f"Tests of the mark `gpu`: {results['gpu_tests']}"
    return [markdown_table([*heads, "bf16 finite"], rows), "", *resumed, "", tests, ""]


NETWORKS = ("generator", "discriminator")


def speed(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            each["recipe"],
            each["method"],
            str(each["batch_size"]),
            *(
                [each["problem"], "", "", "", ""]
                if "problem" in each
                else [
                    f"{each['ratio']['median']:.2f}",
                    f"{each['milliseconds']['median']:.1f}",
                    f"{each['images_per_second']:.0f}",
                    f"{each['share_of_peak']:.0%}",
                    f"{each['peak_memory'] / GIGA:.1f}",
                ]
            ),
        ]
        for each in results["rows"]
    ]
    peers = [
        f"- {each['peer']}, batch {each['batch_size']}: "
        + (each.get("problem") or f"{each['ratio']:.2f} times our time ({', '.join(map(short, each['quartiles']))})")
        for each in results["peers"]
    ]
    heads = ["recipe", "method", "batch", "ratio to mse", "ms a step", "images/s", "of the bf16 peak", "peak GB"]
    side, peak_flops = results["matrix_side"], results["bf16_peak"] / 1e12
    peak = f"Measured bf16 peak, products of {side} x {side}: {peak_flops:.1f} TFLOP/s"
    left = [f"Left out for want of time: {', '.join(results['left_out'])}", ""] if results["left_out"] else []
    return [peak, "", *peers, "", markdown_table(heads, rows), "", *left]


def short(value: float) -> str:
    return f"{value:.2f}"


def profile(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            each["method"],
            each["step"],
            str(each["launched"]),
            ", ".join(f"{name} {count}" for name, count in (each["waits"] or {}).items() if count) or "none",
            ", ".join(f"{top['name'][:40]} {top['us'] / 1e3:.1f} ms" for top in each["dearest"][:3]),
        ]
        for each in results["methods"]
    ]
    return [markdown_table(["method", "step", "kernels", "the host waits in", "dearest"], rows), ""]


def cifar(results: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{run['seconds']:.0f}", f"{run['images_per_second']:.0f}", *cells(run)]
        for name, run in results["runs"].items()
    ]
    heads = ["run", "seconds", "images/s", "hidden PSNR", "hidden SSIM", "FID", "KID", "probe, %", "kNN, %"]
    return [f"{results['images']} images each, scored on CIFAR-10's test images.", "", markdown_table(heads, rows), ""]


def cells(run: dict[str, Any]) -> list[str]:
    """Return a run's scores as cells; empty where one is missing."""
    places = [
        ("evaluate", "masked.psnr", 1, ".2f"),
        ("evaluate", "masked.ssim", 1, ".3f"),
        ("evaluate", "composite.fid[resnet20]", 1, ".2f"),
        ("evaluate", "composite.kid[resnet20]", 1, ".3f"),
        ("probe", "encoder.mean.accuracy", 100, ".1f"),
        ("knn", "encoder.mean", 100, ".1f"),
    ]
    return [shown(run.get(command, {}), place, scale, spec) for command, place, scale, spec in places]


def shown(scores: Any, place: str, scale: float, spec: str) -> str:
    for key in place.split("."):
        scores = scores.get(key) if isinstance(scores, dict) else None
    if isinstance(scores, dict):  # by neighbours, or with a deviation
        scores = scores.get("mean", next(iter(scores.values()), None))
    if isinstance(scores, list):
        scores = sum(scores) / len(scores)
    return format(scale * scores, spec) if isinstance(scores, int | float) else ""
