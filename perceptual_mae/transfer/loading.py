"""Batches of images with their annotations: the same whatever the number of workers, processes and interruptions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.epoch_order import ProcessShare
from perceptual_mae.data.workers import LostWorkerError, Reader, Samples, in_batches, read_once
from perceptual_mae.errors import LostProcessError, UserError
from perceptual_mae.progress import OnProgress
from perceptual_mae.seeding import stream

KeyedBatch = TypeVar("KeyedBatch", bound="Keyed")


@dataclass(frozen=True)
class Keyed:
    """A batch whose random draws are functions of each image: its pass over the data and its index, int64 (B,), CPU."""

    passes: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def draws(self, name: str, seed: int) -> list[torch.Generator]:
        """Return each image's own generator of random numbers: a function of (seed, pass, index)."""
        samples = zip(self.passes.tolist(), self.indices.tolist(), strict=True)
        return [stream(name, seed, one_pass, index) for one_pass, index in samples]


def keys_of(samples: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return the passes and the indices, int64 (B,), of samples."""
    keys = torch.tensor(samples, dtype=torch.int64).view(-1, 2)
    return keys[:, 0].clone(), keys[:, 1].clone()


class Annotated(Protocol):
    """Annotated images by index; reading one raises UserError or UnreadableImageError that names its file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


Collate = Callable[[list[Any], Samples], Any]


class SampleLoader:
    """Endless micro-batches of a share of a plan, read and transformed by `workers` processes (0: in this one).

    transform: called with a sample and the generator of all its draws, a stream of (seed, pass, index). collate: called
    with the samples of a micro-batch and their (pass, index). What cannot be read ends the training: UserError.
    """

    def __init__(
        self,
        dataset: Annotated,
        transform: Callable[[Any, torch.Generator], Any],
        collate: Collate,
        share: ProcessShare,
        *,
        seed: int,
        workers: int,
    ) -> None:
        self._share, self._workers = share, workers
        self._reader = _Reader(dataset, partial(_seeded, transform, seed), collate)
        self._batches: Iterator[Any] = iter(())

    def from_step(self, step: int) -> Iterator[list[Any]]:
        """Yield, for each step of the training from this one on, the micro-batches of this process, without end."""
        self._batches = _read(self._reader, _endless(self._share, step), self._workers)
        while True:
            yield [next(self._batches) for _ in range(self._share.accumulation)]

    def close(self) -> None:
        """End the worker processes."""
        self._batches = iter(())


def in_order(
    dataset: Annotated,
    transform: Callable[[Any], Any],
    collate: Collate,
    *,
    indices: Sequence[int],
    batch_size: int,
    workers: int = 0,
) -> Iterator[Any]:
    """Yield batches of the samples at `indices`, in that order, of pass 0; what cannot be read is a UserError."""
    reader = _Reader(dataset, partial(_unseeded, transform), collate)
    return _read(reader, in_batches(indices, batch_size), workers)


def own_share(
    dataset: Annotated,
    transform: Callable[[Any], Any],
    collate: Collate,
    accelerator: Accelerator,
    name: str,
    on_progress: OnProgress,
    *,
    batch_size: int = 1,
    workers: int = 0,
) -> Iterator[Any]:
    """Yield batches of the samples that this process scores, in order: nothing is padded, and all processes have all.

    Process r of P takes every P-th sample from the r-th on. on_progress counts those of all processes.
    """
    processes, total, done = accelerator.num_processes, len(dataset), 0
    indices = range(accelerator.process_index, total, processes)
    for batch in in_order(dataset, transform, collate, indices=indices, batch_size=batch_size, workers=workers):
        yield batch
        done += len(batch)
        on_progress(name, min(done * processes, total), total)


class _Reader(Reader):
    """Reads, transforms and collates a micro-batch; runs in the workers, from which mistakes come back as messages."""

    def __init__(self, dataset: Annotated, transform: Callable[[Any, int, int], Any], collate: Collate) -> None:
        super().__init__()
        self.dataset, self._transform, self._collate = dataset, transform, collate

    def __getitem__(self, samples: Samples) -> Any:
        read = []
        for pass_, index in samples:
            self.notes.note(index)
            try:
                read.append(self._transform(self.dataset[index], pass_, index))
            except (UnreadableImageError, UserError) as error:
                return _Mistake(str(error))
        return self._collate(read, samples)


@dataclass(frozen=True)
class _Mistake:
    message: str


def _seeded(transform: Callable[[Any, torch.Generator], Any], seed: int, sample: Any, pass_: int, index: int) -> Any:
    return transform(sample, stream("augment", seed, pass_, index))


def _unseeded(transform: Callable[[Any], Any], sample: Any, pass_: int, index: int) -> Any:
    return transform(sample)


def _endless(share: ProcessShare, step: int) -> Iterator[Samples]:
    while True:
        epoch, place = divmod(step, share.plan.steps_per_epoch)
        yield from share.micro_batches(epoch + 1, place)
        step += 1


def _read(reader: _Reader, samples: Iterator[Samples], workers: int) -> Iterator[Any]:
    batches = read_once(reader, samples, workers)
    try:
        for batch in batches:
            if isinstance(batch, _Mistake):
                raise UserError(batch.message)
            yield batch
    except LostWorkerError as lost:
        place = "" if lost.index is None else f" while it read image {lost.index}"
        raise LostProcessError(f"{lost}{place}; the same command goes on from the last checkpoint") from lost
