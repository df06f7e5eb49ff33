"""Worker processes that read micro-batches, survive the signals meant for the run, and end with it."""

import atexit
import functools
import multiprocessing
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_byte, c_int64
from dataclasses import dataclass, fields, is_dataclass
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from perceptual_mae.data.batch import Batch
from perceptual_mae.errors import LostProcessError, UserError

Samples = list[tuple[int, int]]
"""The (pass, index) of each image of a micro-batch."""

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)")
_DYING = 1.0
"""Seconds a worker may still count as alive after its pipes have closed."""
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


class LostWorkerError(LostProcessError):
    """A worker process has died. index: of the image it was reading, None where that is not known."""

    def __init__(self, pid: int, index: int | None) -> None:
        super().__init__(f"the data worker {pid} died")
        self.pid, self.index = pid, index


class NoSharedMemoryError(UserError):
    """A worker could not hand over a batch in shared memory, for the reason that the system gives."""

    def __init__(self, reason: str) -> None:
        is_of_files = "too many open files" in reason.lower()
        remedy = "raise the limit (ulimit -n)" if is_of_files else "enlarge /dev/shm (docker run --shm-size=8g)"
        super().__init__(
            f"a data worker found no room in shared memory for a batch ({reason}); {remedy}, or read without workers "
            "(data.workers=0; training.workers=0 of a recipe of dense transfer)"
        )


class ReadingNotes:
    """Which process each worker is and which image it reads: shared memory, which a worker leaves when it dies."""

    def __init__(self, workers: int) -> None:
        self._notes = RawArray(c_int64, 2 * workers)

    def note(self, index: int) -> None:
        """Note, in a worker, the image it is about to read; anywhere else do nothing."""
        if (worker := get_worker_info()) is not None:
            self._notes[2 * worker.id : 2 * worker.id + 2] = [os.getpid(), index + 1]

    def lost(self, failure: BaseException) -> LostWorkerError | None:
        """Return the error of the worker whose death `failure` is about, or None where it is about something else."""
        reading = dict(zip(self._notes[::2], self._notes[1::2], strict=True))
        named = _DEAD_WORKER.search(str(failure))
        dead, deadline = [int(named[1])] if named else [], time.monotonic() + _DYING
        while not dead and time.monotonic() < deadline:
            alive = {process.pid for process in multiprocessing.active_children()}
            dead = [pid for pid in reading if pid and pid not in alive]
            time.sleep(0.0 if dead else 0.05)
        if not dead:
            return None
        number = reading.get(dead[0], 0)
        return LostWorkerError(dead[0], number - 1 if number else None)


class Reader(Dataset[Any]):
    """Reads a micro-batch by its samples; runs in the workers, and says in its notes which image it reads."""

    def __init__(self) -> None:
        self.notes = ReadingNotes(0)


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
        collate_fn=_to_shared_memory,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=functools.partial(_start, ending),
        persistent_workers=persistent,
        generator=torch.Generator(),  # else each epoch draws from, and so moves, the global generator
    )
    end = weakref.finalize(loader, setattr, ending, "value", 1)
    atexit.register(end)  # runs before multiprocessing ends its children at exit, for it was imported first
    return loader


def in_batches(indices: Sequence[int], batch_size: int) -> Iterator[Samples]:
    """Yield the samples at `indices`, of pass 0, a batch at a time."""
    for start in range(0, len(indices), batch_size):
        yield [(0, index) for index in indices[start : start + batch_size]]


def read_once(reader: Reader, samples: Iterator[Samples], workers: int) -> Iterator[Any]:
    """Return what the reader makes of each micro-batch of samples, in `workers` processes of their own (0: here)."""
    if not workers:
        return map(reader.__getitem__, samples)
    sampler = BatchSampler()
    sampler.samples = samples
    reader.notes = ReadingNotes(workers)
    return begin(worker_loader(reader, sampler, workers, persistent=False), reader.notes)


def begin(loader: DataLoader[Batch], notes: ReadingNotes) -> Iterator[Batch]:
    """Iterate over the loader's present samples; workers that this starts get no signal before they are ready.

    A process inherits its parent's signal handlers: signals that end a run are blocked until `_start` has set its own.
    Raises LostWorkerError where a batch is asked for that a dead worker owes.
    """
    with _lost_workers_named(notes):
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            with _handler_of_dead_children_kept():
                batches = iter(loader)  # which asks workers that are there already, too
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return _checked(loader, batches, notes)


def _checked(loader: DataLoader[Batch], batches: Iterator[Batch], notes: ReadingNotes) -> Iterator[Batch]:
    """Yield the batches. It keeps the loader, without which a SIGTERM ends its workers; and drops it first."""
    while True:
        with _lost_workers_named(notes):
            batch = next(batches, None)
        if batch is None:
            return
        if isinstance(batch, _NoRoom):
            raise NoSharedMemoryError(batch.reason)
        yield batch


@contextmanager
def _lost_workers_named(notes: ReadingNotes) -> Iterator[None]:
    """Raise LostWorkerError for torch's error of a dead worker; a worker's own errors pass."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as failure:  # the latter of its pipes
        if (lost := notes.lost(failure)) is None:
            raise
        raise lost from failure


@contextmanager
def _handler_of_dead_children_kept() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, which would raise an error of a dead worker in the middle of a step."""
    previous = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread() and previous is not None:
        signal.signal(signal.SIGCHLD, previous)


def _start(ending: Any, worker: int) -> None:
    """Keep a worker to one thread, and alive while the run ends its step and saves.

    Ctrl-C, terminals that close and batch systems signal the whole process group. A SIGTERM ends a worker only when the
    loader is gone or its process is exiting, for then it comes from there. (A worker whose parent is gone ends by
    itself.)
    """

    def end_with_loader(*_: object) -> None:
        if ending.value:
            os._exit(0)

    torch.set_num_threads(1)
    for number in _ENDING:
        signal.signal(number, end_with_loader if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


@dataclass(frozen=True)
class _NoRoom:
    """What a worker hands over in place of a batch for which shared memory had no room."""

    reason: str


def _to_shared_memory(batch: Any) -> Any:
    """Return the batch with its tensors in shared memory, where this is a worker.

    The thread of torch that would do so drops a batch that fails, and the run would wait for it for ever.
    """
    if get_worker_info() is not None:
        try:
            _share(batch)
        except (RuntimeError, OSError) as failure:
            return _NoRoom(str(failure))
    return batch


def _share(values: Any) -> None:
    if isinstance(values, torch.Tensor):
        values.share_memory_()  # type: ignore[no-untyped-call]
    elif isinstance(values, list | tuple):
        for value in values:
            _share(value)
    elif isinstance(values, dict):
        _share(list(values.values()))
    elif is_dataclass(values):
        _share([getattr(values, each.name) for each in fields(values)])
