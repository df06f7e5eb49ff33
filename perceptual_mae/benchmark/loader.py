"""How fast images are read: one worker, and as many as a configuration asks for, measured in turns on its own images.

Seconds are those of a clock, for workers are other processes: nothing else should run on the machine.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

from perceptual_mae.benchmark.measure import Quartiles, quartiles
from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.epoch_order import EpochPlan
from perceptual_mae.data.loading import TrainLoader
from perceptual_mae.data.pixel_cache import CachedImages
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.training.image_check import fill_cache

SECONDS = 1.0
"""A round takes at least so long, and two batches of each worker."""
WAITING = 3
"""Batches of each worker that do not count: two were made while others were measured, one is under way."""
ENDLESS = 10**9
"""Images of an epoch that does not end while it is measured."""


@dataclass
class LoaderRates:
    """Images a second that a configuration's loader reads, in each round, by the number of workers."""

    name: str
    kind: str
    num_images: int
    batch_size: int
    rates: dict[int, list[float]]

    def rate(self, workers: int) -> Quartiles:
        """Return the median and quartiles of the rounds."""
        return quartiles(self.rates[workers])

    def needed(self, step_rate: float) -> int:
        """Return how many workers keep up with a training of so many images a second.

        Each counts as it did among the most that were measured, where they share the machine.
        """
        most = max(self.rates)
        return math.ceil(step_rate * most / self.rate(most).median)

    def as_tree(self, step_rate: float) -> dict[str, Any]:
        """Return all of it, and what a training of so many images a second needs, for a file of JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "num_images": self.num_images,
            "batch_size": self.batch_size,
            "workers": [
                {"workers": workers, "images_per_second": asdict(self.rate(workers)), "rounds": rates}
                for workers, rates in self.rates.items()
            ],
            "step_images_per_second": step_rate,
            "workers_needed": self.needed(step_rate),
            "cores": os.cpu_count() or 1,
        }


def measure_loaders(
    configs: Sequence[tuple[str, RunConfig]], *, rounds: int, on_progress: OnProgress = no_progress
) -> list[LoaderRates]:
    """Return how fast each configuration reads its training images, with one worker and with `data.workers`.

    There is at most one worker a core, as in training. All take turns, round by round; the first round does not count.
    Raises UserError where images are missing.
    """
    results, streams = list[LoaderRates](), list[tuple[int, int, Iterator[int]]]()
    with ExitStack() as stack:
        for place, (name, config) in enumerate(configs):
            dataset = config.data.build("train")
            if isinstance(dataset, CachedImages):
                fill_cache(dataset, config.data.workers, on_progress)
            batch_size = max(1, config.training.batch_size // config.training.accumulation)
            counts = sorted({1, min(max(1, config.data.workers), os.cpu_count() or 1)})
            results.append(
                LoaderRates(name, config.data.kind, len(dataset), batch_size, {workers: [] for workers in counts})
            )
            for workers in counts:
                loader = stack.enter_context(closing(_loader(config, dataset, batch_size, workers)))
                streams.append((place, workers, _batches(loader)))
        for number in range(rounds + 1):
            on_progress("loader, rounds", number, rounds + 1)
            for place, workers, stream in streams:
                rate = _rate(stream, workers)
                if number:
                    results[place].rates[workers].append(rate)
    return results


def _loader(config: RunConfig, dataset: ImageDataset, batch_size: int, workers: int) -> TrainLoader:
    seed = config.training.seed
    plan = EpochPlan(len(dataset), batch_size, seed=seed, epoch_images=max(ENDLESS, batch_size))
    decode_on = make_accelerator(config).device if config.data.decode == "device" else None
    transform = build.build_train_transform(config.data)
    return TrainLoader(dataset, transform, plan, seed=seed, workers=workers, decode_on=decode_on)


def _batches(loader: TrainLoader) -> Iterator[int]:
    """Yield the number of images of one batch after the other."""
    for batches in loader.epoch(1):
        yield sum(map(len, batches))


def _rate(stream: Iterator[int], workers: int) -> float:
    for _ in range(WAITING * workers):
        next(stream)
    images, count, start = 0, 0, time.perf_counter()
    while count < 2 * workers or time.perf_counter() - start < SECONDS:
        images += next(stream)
        count += 1
    return images / (time.perf_counter() - start)
