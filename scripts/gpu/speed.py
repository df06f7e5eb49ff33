"""Time and memory of a step: all methods against plain MAE, and ours against transformers' ViTMAE."""

import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpu.correctness import device_name
from gpu.form import FOUR, Form, config_of, methods
from perceptual_mae.benchmark.measure import enter, measure, quartiles
from perceptual_mae.benchmark.profiler import clock_of
from perceptual_mae.benchmark.report import report
from perceptual_mae.config.parsing import RunConfig
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
    results["peers"] = [against_transformers(form, attention) for attention in ("sdpa", "eager")]
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


def against_transformers(form: Form, attention: str) -> dict[str, Any]:
    """Return how many times our time a step of transformers' ViTMAE of the same sizes takes, the two in turns."""
    batch_size = 4 if form.toy else 64
    more = (f"training.batch_size={batch_size}", "training.precision=bf16")
    config = config_of("cifar10" if form.toy else "imagenet", "mse", toy=form.toy, more=more)
    stated = {"peer": f"transformers {attention}", "batch_size": batch_size}
    try:
        ours = enter("mse", config)
        step = ours.kinds[0]
        peer = transformers_step(config, attention, ours.trainer.accelerator.device)
    except ImportError as missing:
        return {**stated, "problem": f"{missing.name} is not installed"}
    clock = clock_of(ours.trainer.accelerator.device)
    takes: dict[str, Callable[[], object]] = {"ours": lambda: ours.step(step.progress(0)), "peer": peer}
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    try:
        for number in range(WARMUP + (3 if form.toy else PEER_ROUNDS)):
            for name in (takes, reversed(takes))[number % 2]:
                start = clock.mark()
                takes[name]()
                end = clock.mark()
                clock.settle()
                if number >= WARMUP:
                    seconds[name].append(clock.between(start, end))
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        return {**stated, "problem": "out of memory"}
    finally:
        release()
    spread = quartiles([peer / own for own, peer in zip(seconds["ours"], seconds["peer"], strict=True)])
    own = quartiles(seconds["ours"])
    return {**stated, "ratio": spread.median, "quartiles": [spread.lower, spread.upper], "ours_seconds": own.median}


def transformers_step(config: RunConfig, attention: str, device: torch.device) -> Callable[[], object]:
    """Return what takes one step of a ViTMAE of the same sizes, with fused AdamW and bfloat16 autocast."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from perceptual_mae.config.build import build_generator

    generator = build_generator(config.generator, config.data.image, 0)
    encoder, decoder = generator.encoder, generator.decoder
    width, decoder_width = encoder.pos_embed.shape[-1], decoder.embed.out_features
    sizes = ViTMAEConfig(
        image_size=config.data.size[0],
        patch_size=generator.patch_size,
        hidden_size=width,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].attn.heads,
        intermediate_size=4 * width,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=len(decoder.blocks),
        decoder_num_attention_heads=decoder.blocks[0].attn.heads,
        decoder_intermediate_size=4 * decoder_width,
        attn_implementation=attention,
    )
    network = ViTMAEForPreTraining(sizes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (config.data.mean, config.data.std))
    shape = (config.training.batch_size, len(config.data.mean), *config.data.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = images.pin_memory() if device.type == "cuda" else images

    def step() -> None:
        pixels = (images.to(device, non_blocking=True).float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(pixels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
