"""Time and memory of a step: all methods against plain MAE, and ours against other libraries'."""

import gc
import json
from collections.abc import Iterator
from typing import Any

import torch

from gpu.correctness import device_name
from gpu.form import FOUR, Form, config_of, methods
from peers import PEERS, race
from perceptual_mae.benchmark.measure import measure
from perceptual_mae.benchmark.profiler import clock_of
from perceptual_mae.benchmark.report import report
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically
from perceptual_mae.training.messages import is_out_of_memory

ROUNDS, WARMUP = 3, 2
PEER_ROUNDS = 15
LEAST_SECONDS = 15.0
"""No configuration is begun with less time left."""


def measure_all(form: Form) -> dict[str, Any]:
    """Return the matrix peak, the peers, and a row for each recipe, batch size and method that time allowed."""
    size = 256 if form.toy else 8192
    results: dict[str, Any] = {"device": device_name(), "torch": torch.__version__, "matrix_side": size}
    results["bf16_peak"] = matrix_peak(size)
    results["peers"] = [against_peer(form, peer) for peer in PEERS]
    results["rows"], results["left_out"] = [], []
    for recipe, method, batch_size in cells(form):
        name = f"{recipe} {method}, batch {batch_size}"
        if form.seconds_left < LEAST_SECONDS:
            results["left_out"].append(name)
            continue
        results["rows"].append(row(form, recipe, method, batch_size, results["bf16_peak"]))
        write_atomically(form.out / "speed.partial.json", json.dumps(results, indent=2) + "\n")
        print(f"  {name}: {results['rows'][-1].get('ratio') or results['rows'][-1]['problem']}", flush=True)
    return results


def cells(form: Form) -> Iterator[tuple[str, str, int]]:
    """Yield recipe, method and batch size, the most telling first."""
    if form.toy:
        yield from (("cifar10", method, 4) for method in FOUR)
        return
    others = [method for method in methods() if method not in FOUR]
    yield from (("imagenet", method, 64) for method in FOUR)
    yield from (("imagenet_vit_l", method, 64) for method in FOUR)
    yield from (("imagenet", method, 256) for method in FOUR)
    yield from (("imagenet", method, 64) for method in others)
    yield from (("imagenet_vit_l", method, 128) for method in FOUR)


def row(form: Form, recipe: str, method: str, batch_size: int, peak: float) -> dict[str, Any]:
    """Return a method's figures, measured in turns with plain MAE of the same recipe and batch size."""
    stated = {"recipe": recipe, "method": method, "batch_size": batch_size}
    more = (f"training.batch_size={batch_size}", "training.precision=bf16")
    names = [method] if method == "mse" else [method, "mse"]
    try:
        configs = [(name, config_of(recipe, name, toy=form.toy, more=more)) for name in names]
        candidates, clock = measure(configs, rounds=ROUNDS, warmup=WARMUP)
        figures = report(candidates, clock, torch.get_num_threads())["configurations"][0]
    except UserError as problem:
        return {**stated, "problem": str(problem)}
    finally:
        release()
    seconds = figures["milliseconds"]["median"] / 1e3
    return {
        **stated,
        "ratio": figures["ratio"],
        "milliseconds": figures["milliseconds"],
        "images_per_second": batch_size / seconds,
        "share_of_peak": figures["flops"] / seconds / peak,
        "peak_memory": figures["peak_memory"],
        "parts": figures["parts"],
        "steps": figures["steps"],
    }


def release() -> None:
    """Give memory of networks that are gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def matrix_peak(side: int, repeats: int = 20) -> float:
    """Return the operations a second of bfloat16 products of square matrices, the best of 3 trials."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock, best = clock_of(device), 0.0
    for _ in range(3):
        start = clock.mark()
        for _ in range(repeats):
            one @ other
        end = clock.mark()
        clock.settle()
        best = max(best, repeats * 2 * side**3 / clock.between(start, end))
    return best


def against_peer(form: Form, peer: str) -> dict[str, Any]:
    """Return how many times our time a step of another library's MAE of the same sizes takes, the two in turns."""
    batch_size = 4 if form.toy else 64
    more = (f"training.batch_size={batch_size}", "training.precision=bf16")
    config = config_of("cifar10" if form.toy else "imagenet", "mse", toy=form.toy, more=more)
    stated = {"peer": peer, "batch_size": batch_size}
    try:
        own, ratios = race(config, [peer], rounds=3 if form.toy else PEER_ROUNDS)
    except ImportError as missing:
        return {**stated, "problem": f"{missing.name} is not installed"}
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        return {**stated, "problem": "out of memory"}
    finally:
        release()
    spread = ratios[peer]
    return {**stated, "ratio": spread.median, "quartiles": [spread.lower, spread.upper], "ours_seconds": own.median}
