"""Batches for training and evaluation, the same whatever the number of workers, processes and interruptions."""

import gc
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from perceptual_mae.data.batch import Batch, collate
from perceptual_mae.data.dataset import ImageDataset, file_name, max_unreadable, read_finite
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.device_decoding import DeviceDecoder, EncodedReader
from perceptual_mae.data.epoch_order import EpochPlan, ProcessShare
from perceptual_mae.data.unreadable import (
    SPARE_HELD_OUT,
    TooManyUnreadableError,
    too_many_unreadable,
    unreadable_line,
)
from perceptual_mae.data.workers import (
    BatchSampler,
    LostWorkerError,
    Reader,
    ReadingNotes,
    Samples,
    begin,
    in_batches,
    read_once,
    worker_loader,
)
from perceptual_mae.errors import LostProcessError
from perceptual_mae.seeding import stream

__all__ = ["Batch", "EpochPlan", "TrainLoader", "evaluation_batches"]

logger = logging.getLogger(__name__)

FEWEST_REPLACEMENTS = 100
"""So many images in a row are tried, if there are as many, before a batch is given up for lack of a readable one."""


class TrainLoader:
    """This process's share of a plan's batches, read and augmented by `workers` processes (0: in this one).

    transform: from a uint8 image (3, H, W) of any size, with the sample's generator, to one of the batch's size.
    The augmentation of a sample draws from a stream of (seed, pass, index). An unreadable image is replaced by the
    next readable one and logged once; TooManyUnreadableError when more of the data set than its `max_unreadable` turn
    out so. decode_on: the device on which JPEGs are decoded and augmented, in this process, and on which the images of
    a batch then are; None: workers do both.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Callable[[Tensor, torch.Generator], Tensor],
        plan: EpochPlan,
        *,
        seed: int,
        workers: int,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation: int = 1,
        decode_on: torch.device | None = None,
    ) -> None:
        self.plan = plan
        self._share = ProcessShare(plan, num_processes, process_index, accumulation)
        reader = _TrainReader(dataset, transform, seed)
        self._reader: Reader = reader if decode_on is None else EncodedReader(reader, dataset)
        self._decode = None if decode_on is None else DeviceDecoder(reader, transform, seed, decode_on)
        self._dataset = dataset
        self._unreadable = _Unreadable(dataset)
        self._sampler = BatchSampler()
        self._workers = workers
        self._loader = self._make_loader()

    @property
    def workers(self) -> int:
        """How many processes read."""
        return self._workers

    @property
    def unreadable(self) -> dict[str, str]:
        """The distinct files that this process could not read so far, with the reasons."""
        return self._unreadable.reasons

    @property
    def refusal(self) -> str | None:
        """Why this process must not go on, where it could not read too many files; None where it may."""
        return self._unreadable.refusal

    def list_unreadable(self, path: Path, known: Mapping[str, str]) -> None:
        """Count the `known` unreadable files from now on, and append each further one to the text file `path`."""
        self._unreadable.reasons |= known
        self._unreadable.listed_in = path

    def epoch(self, epoch: int, first_step: int = 0, *, allow_excess: bool = False) -> Iterator[list[Batch]]:
        """Yield, for each step of an epoch from `first_step` on, the micro-batches of this process.

        The iterator may be left at any point; asking for an epoch ends the one before. Where a worker dies, all are
        started again with a warning; raises LostProcessError where one dies twice before the same step. allow_excess:
        while batches can be filled go on in spite of too many unreadable images, for whoever asks for the `refusal`.
        """
        step, lost_before = first_step, None
        while step < self.plan.steps_per_epoch:
            try:
                with closing(self._steps(epoch, step)) as steps:  # an error that is kept must not keep workers
                    for batches in steps:
                        is_full = all(map(len, batches))
                        if not is_full or (self.refusal is not None and not allow_excess):
                            raise TooManyUnreadableError(self.refusal or "no readable image was found for a batch")
                        step += 1
                        yield batches
            except LostWorkerError as lost:
                if lost_before == step:
                    raise LostProcessError(
                        f"{self._describe(lost)}, again after the workers were restarted (the system may have run out "
                        "of memory: lower data.workers, or repair that file)"
                    ) from lost
                logger.warning("%s; the workers are started again", self._describe(lost))
                lost_before = step
            if step < self.plan.steps_per_epoch:
                self._loader = None
                gc.collect()  # its iterator, which the error refers to, must not be copied into new workers
                self._loader = self._make_loader()

    def _steps(self, epoch: int, first_step: int) -> Generator[list[Batch], None, None]:
        micro_batches = self._read(_micro_batches(self._share, epoch, first_step))
        for _ in range(first_step, self.plan.steps_per_epoch):
            step = []
            for _ in range(self._share.accumulation):
                batch = next(micro_batches)
                self._unreadable.record(batch.unreadable)
                step.append(batch)
            yield step

    def _make_loader(self) -> DataLoader[Batch] | None:
        if not self._workers:
            return None
        self._reader.notes = ReadingNotes(self._workers)
        return worker_loader(self._reader, self._sampler, self._workers, persistent=True)

    def _describe(self, lost: LostWorkerError) -> str:
        return f"{lost}{_last_file(self._dataset, lost.index)}"

    def close(self) -> None:
        """End the worker processes; the loader cannot be used afterwards."""
        self._loader = None

    def _read(self, samples: Iterator[Samples]) -> Iterator[Batch]:
        read: Iterator[Any]
        if self._loader is None:
            read = map(self._reader.__getitem__, samples)
        else:
            self._sampler.samples = samples
            read = begin(self._loader, self._reader.notes)
        return read if self._decode is None else map(self._decode, read)


def _last_file(dataset: ImageDataset, index: int | None) -> str:
    """Return in words what a worker that died was reading."""
    if index is None:
        return " before it read anything"
    return f" while it read {file_name(dataset, index) or f'image {index}'}"


def _micro_batches(share: ProcessShare, epoch: int, first_step: int) -> Iterator[Samples]:
    """Yield the samples of each micro-batch from a step of an epoch on.

    Not a method: a DataLoader must not refer to the loader's owner. In such a cycle its queues would be collected
    before it could end its workers.
    """
    for step in range(first_step, share.plan.steps_per_epoch):
        yield from share.micro_batches(epoch, step)


def evaluation_batches(
    dataset: ImageDataset,
    transform: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    workers: int = 0,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield batches of the images at `indices` (None: all), in that order; unreadable ones are logged and left out.

    transform: from a uint8 image (3, H, W) of any size to one of the batch's size.

    Raises TooManyUnreadableError when more of the data set than its `max_unreadable`, and more than one file, turn out
    unreadable.
    """
    indices = range(len(dataset)) if indices is None else indices
    unreadable = _Unreadable(dataset, spare=SPARE_HELD_OUT)
    batches = read_once(_EvaluationReader(dataset, transform), in_batches(indices, batch_size), workers)
    try:
        for batch in batches:
            unreadable.record(batch.unreadable)
            if unreadable.refusal is not None:
                raise TooManyUnreadableError(unreadable.refusal)
            if len(batch):
                yield batch
    except LostWorkerError as lost:
        raise LostProcessError(f"{lost}{_last_file(dataset, lost.index)}; run the same command again") from lost


class _TrainReader(Reader):
    """Reads and augments a micro-batch; runs in the workers."""

    def __init__(
        self, dataset: ImageDataset, transform: Callable[[Tensor, torch.Generator], Tensor], seed: int
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self._transform = transform
        self._seed = seed

    def __getitem__(self, samples: Samples) -> Batch:
        images, labels, unreadable = [], [], list[tuple[str, str]]()
        for pass_, index in samples:
            item = self._readable_from(index, unreadable)
            if item is None:  # far too many are broken: whoever asked for the batch stops at this report
                return collate([], [], [], unreadable)
            images.append(self._transform(item[0], stream("augment", self._seed, pass_, index)))
            labels.append(item[1])
        return collate(images, labels, samples, unreadable)

    def _readable_from(self, index: int, unreadable: list[tuple[str, str]]) -> tuple[Tensor, int] | None:
        """Return the first readable image (3, H, W) from an index on, with its label; None after too many failures."""
        num_images = len(self.dataset)
        for offset in range(num_images):
            self.notes.note((index + offset) % num_images)
            try:
                return read_finite(self.dataset, (index + offset) % num_images)
            except UnreadableImageError as error:
                unreadable.append((error.path, error.reason))
            if offset > max(FEWEST_REPLACEMENTS, max_unreadable(self.dataset) * num_images):
                break
        return None


class _EvaluationReader(Reader):
    """Reads a batch in order, without those that cannot be read; runs in the workers."""

    def __init__(self, dataset: ImageDataset, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dataset = dataset
        self._transform = transform

    def __getitem__(self, samples: Samples) -> Batch:
        images, labels, read, unreadable = [], [], [], []
        for sample in samples:
            self.notes.note(sample[1])
            try:
                image, label = read_finite(self.dataset, sample[1])
            except UnreadableImageError as error:
                unreadable.append((error.path, error.reason))
                continue
            images.append(self._transform(image))
            labels.append(label)
            read.append(sample)
        return collate(images, labels, read, unreadable)


class _Unreadable:
    """The distinct unreadable files so far, with the reasons; a refusal beyond the data set's share and `spare`."""

    def __init__(self, dataset: ImageDataset, spare: int = 0) -> None:
        self.dataset, self._spare = dataset, spare
        self.reasons: dict[str, str] = {}
        self.listed_in: Path | None = None

    @property
    def refusal(self) -> str | None:
        """The message where there are too many."""
        return too_many_unreadable(self.dataset, self.reasons, self._spare, " so far")

    def record(self, unreadable: tuple[tuple[str, str], ...]) -> None:
        """Log new files, and list them."""
        for path, reason in unreadable:
            if path not in self.reasons:
                self.reasons[path] = reason
                logger.warning("left out an image that cannot be read: %s: %s", path, reason)
                if self.listed_in is not None:
                    with self.listed_in.open("a") as listed:
                        listed.write(unreadable_line(path, reason))
