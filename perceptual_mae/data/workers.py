"""Worker processes that read micro-batches, survive the signals meant for the run, and end with it."""

import atexit
import functools
import os
import signal
import weakref
from collections.abc import Iterator
from ctypes import c_byte
from multiprocessing.sharedctypes import RawValue
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from perceptual_mae.data.batch import Batch

Samples = list[tuple[int, int]]
"""The (pass, index) of each image of a micro-batch."""

_ENDING = (signal.SIGINT, signal.SIGTERM)


class BatchSampler(Sampler[Samples]):
    """The samples a DataLoader reads next; replaced before each epoch, so that its workers can persist."""

    def __init__(self) -> None:
        self.samples: Iterator[Samples] = iter(())

    def __iter__(self) -> Iterator[Samples]:
        return self.samples


def worker_loader(
    reader: Dataset[Batch], sampler: BatchSampler, workers: int, *, persistent: bool
) -> DataLoader[Batch]:
    """Return a loader whose `workers` processes (at most one a core) call `reader` with the sampler's samples."""
    ending = RawValue(c_byte, 0)  # shared with the workers: 1 once they may be ended
    loader = DataLoader(
        reader,
        batch_size=None,  # the sampler yields whole micro-batches, and the reader stacks them
        sampler=sampler,
        num_workers=min(workers, os.cpu_count() or 1),
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=functools.partial(_start, ending),
        persistent_workers=persistent,
        generator=torch.Generator(),  # else each epoch draws from, and so moves, the global generator
    )
    end = weakref.finalize(loader, setattr, ending, "value", 1)
    atexit.register(end)  # runs before multiprocessing ends its children at exit, for it was imported first
    return loader


def begin(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Iterate over the loader's present samples; workers that this starts get no signal before they are ready.

    A process inherits its parent's signal handlers: signals that end a run are blocked until `_start` has set its own.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start(ending: Any, worker: int) -> None:
    """Keep a worker to one thread, and alive while the run ends its step and saves.

    Ctrl-C and batch systems signal the whole process group. A SIGTERM ends a worker only when the loader is gone or its
    process is exiting, for then it comes from there. (A worker whose parent is gone ends by itself.)
    """

    def end_with_loader(*_: object) -> None:
        if ending.value:
            os._exit(0)

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_with_loader)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _as_is(batch: Any) -> Any:
    return batch
