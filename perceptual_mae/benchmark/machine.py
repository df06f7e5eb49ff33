"""What a machine has: versions, optional packages, devices, memory, and how fast it multiplies matrices."""

import os
import platform
import re
import time
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path

import torch

from perceptual_mae.evaluation.open_run import computes_in_bf16
from perceptual_mae.run.folder import version_of

PACKAGES = (
    *("torch", "torchvision", "accelerate", "timm", "numpy", "pydantic", "kornia", "clean-fid", "lpips"),
    "pytorch-msssim",
)
"""Whose versions are printed: those that a number can depend on."""
EXTRAS: Mapping[str, str] = {
    "transfer": "pmae detect; AP in pmae compare",
    "interop": "pmae export to ONNX and to transformers' names",
    "tracking": "tracking.trackers",
    "parquet": "pmae embed to .parquet files",
}
"""What each optional set of packages is for."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices that are multiplied."""
GIGA, TERA = 1e9, 1e12


def versions() -> dict[str, str]:
    """Return the versions of this package, Python, the system, and of the packages that decide numbers."""
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    packages = {name: version_of(name) or "not installed" for name in ("perceptual-mae", *PACKAGES)}
    return {"python": platform.python_version(), "system": system, **packages}


def missing_packages() -> dict[str, list[str]]:
    """Return for each optional set the packages of it that are not installed."""
    missing: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    for requirement in requires("perceptual-mae") or ():
        stated = re.match(r"""([\w.-]+).*extra == ['"](\w+)['"]""", requirement)
        if stated and stated[2] in missing and version_of(stated[1]) is None:
            missing[stated[2]].append(stated[1])
    return missing


def devices() -> list[str]:
    """Return a line for each GPU, or one for the processor, and one for memory."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"processor: {processor_name()}, {cores} cores, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        lines.append(
            f"GPU {number}: {torch.cuda.get_device_name(number)}, {free / GIGA:.1f} of {total / GIGA:.1f} GB free, "
            f"CUDA {torch.version.cuda}"
        )
    if not torch.cuda.is_available():
        lines.append(
            f"no GPU that PyTorch can use ({'built for CPUs' if torch.version.cuda is None else 'none found'})"
        )
    memory = psutil.virtual_memory()
    lines.append(f"memory: {memory.available / GIGA:.1f} of {memory.total / GIGA:.1f} GB free")
    if Path("/dev/shm").is_dir():
        lines[-1] += f", shared (for data.workers) {psutil.disk_usage('/dev/shm').free / GIGA:.2f} GB"
    return lines


def processor_name() -> str:
    """Return the processor's name as Linux tells it, else Python's word for it."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def matrix_rates(seconds: float) -> dict[str, float]:
    """Return by number format the rate of large matrix products in FLOP/s, each measured for half of `seconds`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    formats = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if computes_in_bf16() else {})
    return {name: _rate(kind, device, seconds / len(formats)) for name, kind in formats.items()}


def _rate(kind: torch.dtype, device: torch.device, seconds: float) -> float:
    side = SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    torch.mm(left, right)  # the first call chooses a kernel
    finish()
    begun, products = time.perf_counter(), 0
    while products == 0 or time.perf_counter() - begun < seconds:
        torch.mm(left, right)
        finish()
        products += 1
    return 2 * side**3 * products / (time.perf_counter() - begun)
