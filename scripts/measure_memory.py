"""Memory over steps and over images, and what a checkpoint costs: `python scripts/measure_memory.py train mse`.

`train METHOD [--steps N]` trains the tiny configuration below and prints the resident memory every 100 steps, with the
seconds of every save and of one resume. `score evaluate|probe N` scores N images of a run that it trains first
(`--run` takes one that is there) and prints the peak of the process.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from perceptual_mae.cli import main as pmae
from perceptual_mae.config.parsing import RunConfig, load_config
from perceptual_mae.run import checkpoint
from perceptual_mae.training import trainer_state
from perceptual_mae.training.loop import pretrain
from perceptual_mae.training.trainer import Trainer

TINY = (
    *("data.size=32", "data.num_images=96", "data.image_size=32", "data.workers=0"),
    *("generator.patch_size=8", "generator.width=32", "generator.depth=2", "generator.heads=2"),
    *("generator.decoder_width=32", "generator.decoder_depth=4", "generator.decoder_heads=2"),
    *("training.batch_size=4", "training.log_every=50", "training.ema_kimg=1", "schedule.warmup_ratio=0.1"),
    *("evaluation.limit=16", "evaluation.batch_size=8", "evaluation.grid_images=2", "evaluation.probe_images=0"),
)
"""A generator of a few thousand weights on drawn images of 32 pixels, as in the tests."""
SMALL_DISCRIMINATOR = {"stylegan2_ada_p": ["discriminator.channel_base=256"]}
EVERY = 100
"""Steps from one measurement, and from one checkpoint, to the next."""


def resident() -> float:
    """Return the memory of this process, in MB of 2^20 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak() -> float:
    """Return the most memory that this process had, in the same unit."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def configuration(method: str, steps: int, every: int = EVERY) -> RunConfig:
    """Return the tiny configuration of a method, with an epoch every so many steps."""
    images, epochs = 4 * every, max(1, steps // every)
    length = [f"training.epoch_images={images}", f"training.epochs={epochs}"]
    return load_config(["quickstart", method, *TINY, *SMALL_DISCRIMINATOR.get(method, []), *length])


def timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return the function, with the seconds of each call appended."""

    def with_time(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments, **options)
        seconds.append(time.perf_counter() - started)
        return result

    return with_time


def train(method: str, steps: int, every: int = EVERY) -> list[float]:
    """Train, print what was measured, and return the resident memory after every so many steps."""
    memory, saves, loads = list[float](), list[float](), list[float]()
    step, save, load = Trainer.step, checkpoint.save, trainer_state.load_state_dict

    def measured(self: Trainer, batches: Any, progress: Any) -> Any:
        scalars = step(self, batches, progress)
        if (progress.step + 1) % every == 0:
            memory.append(resident())
        return scalars

    Trainer.step = measured  # type: ignore[method-assign]
    checkpoint.save = timed(save, saves)
    trainer_state.load_state_dict = timed(load, loads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            pretrain(configuration(method, steps, every), Path(folder) / "run", quiet=True)
            whole = time.perf_counter() - started
            pretrain(configuration(method, steps, every), Path(folder) / "run", quiet=True)
            size = sum(file.stat().st_size for file in checkpoint.newest(Path(folder) / "run/checkpoints").iterdir())  # type: ignore[union-attr]
    finally:
        Trainer.step, checkpoint.save, trainer_state.load_state_dict = step, save, load  # type: ignore[method-assign]
    print(f"{method}: {steps} steps in {whole:.0f} s; resident MB every {every} steps:")
    print(" ".join(f"{each:.1f}" for each in memory))
    half = memory[len(memory) // 2 :]
    growth = (half[-1] - half[0]) / max(1, len(half) - 1) * 1000 / every
    print(f"second half: {growth:+.2f} MB in 1000 steps; peak {peak():.0f} MB")
    print(f"checkpoint of {size / 2**20:.2f} MB: saved in {1000 * statistics.median(saves):.0f} ms,")
    print(f"{100 * sum(saves) / whole:.1f} % of the run for {len(saves)} of them; loaded in {1000 * loads[0]:.0f} ms")
    return memory


def score(command: str, images: int, run: Path | None) -> float:
    """Score so many images and return the peak of the process."""
    with tempfile.TemporaryDirectory() as folder:
        path = run or Path(folder) / "run"
        if run is None or not run.exists():
            pretrain(configuration("mse", EVERY), path, quiet=True)
        before = peak()
        options = {  # of the drawn images a tenth are held out
            "evaluate": [f"data.num_images={10 * images}", f"--limit={images}", "--metrics=psnr,ssim"],
            "probe": [f"data.num_images={images}", f"--limit={images}", "--test-limit=100"],
        }
        code = pmae([command, str(path), *options[command], "--out", str(Path(folder) / "scores.json")])
        print(f"{command} {images}: exit {code}, peak {peak():.0f} MB ({before:.0f} MB before)")
        return peak()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    training = commands.add_parser("train")
    training.add_argument("method")
    training.add_argument("--steps", type=int, default=2000)
    scoring = commands.add_parser("score")
    scoring.add_argument("command", choices=["evaluate", "probe"])
    scoring.add_argument("images", type=int)
    scoring.add_argument("--run", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "train":
        train(arguments.method, arguments.steps)
    else:
        score(arguments.command, arguments.images, arguments.run)


if __name__ == "__main__":
    main()
