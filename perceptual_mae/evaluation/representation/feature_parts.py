"""Features that a stopped call has extracted already, kept in parts next to its result until that is written."""

import re
import shutil
import time

import torch

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation import resumption
from perceptual_mae.evaluation.representation.features import Chunk
from perceptual_mae.evaluation.resumption import ResumableTrainings
from perceptual_mae.run import checkpoint

GROUP = "features"
"""The group of tensors of a part."""


class FeatureParts:
    """The features of one pass over images, by one process of several: whole batches, one part after the other.

    A part is a checkpoint, whole or not at all, named by how many images of the process's share have been read after
    it. It is written where half a minute has passed since the last one, or a stop was requested. Settings that decide
    features (encoder, images, preparation) are those of `trainings`; other processes make other parts.
    """

    def __init__(self, trainings: ResumableTrainings, name: str) -> None:
        self._trainings, self._name = trainings, name
        checkpoints, accelerator = trainings.checkpoints, trainings.accelerator
        of_pass = re.sub(r"\W+", "_", name)
        share = f"{accelerator.process_index}-of-{accelerator.num_processes}"
        self._folder = checkpoints.folder / "features" / of_pass / share if checkpoints is not None else None
        self._pending: list[Chunk] = []
        self._written = 0
        self._next = time.monotonic() + resumption.SECONDS_BETWEEN

    def load(self) -> tuple[list[Chunk], int]:
        """Return what is kept, and how many images of the share it is of; damaged parts and later ones are dropped."""
        chunks = list[Chunk]()
        for path in checkpoint.checkpoints(self._folder) if self._folder is not None else ():
            flaw = checkpoint.corruption(path, (GROUP,))
            if flaw is not None or checkpoint.load_metadata(path)["first"] != self._written:
                shutil.rmtree(path)
                continue
            tensors = checkpoint.load_tensors(path, GROUP)
            indices, labels = tensors.pop("indices"), tensors.pop("labels")
            named = {key.partition(".")[2]: value for key, value in sorted(tensors.items())}
            chunks.append((indices, labels, named))
            self._written = checkpoint.step_of(path)
        return chunks, self._written

    def add(self, chunk: Chunk, images: int) -> None:
        """Add a batch, after which so many images of the share have been read."""
        if self._folder is None:
            return
        self._pending.append(chunk)
        if time.monotonic() >= self._next or self._trainings.is_asked_to_stop:
            self._write(images)

    def _write(self, images: int) -> None:
        assert self._folder is not None
        started = time.monotonic()
        named = {
            f"{number:05d}.{key}": torch.cat([chunk[2][key] for chunk in self._pending])
            for number, key in enumerate(self._pending[0][2])
        }
        tensors = {"indices": torch.cat([chunk[0] for chunk in self._pending])}
        tensors |= {"labels": torch.cat([chunk[1] for chunk in self._pending])} | named
        try:
            self._trainings.save_settings()
            checkpoint.save(self._folder, images, {GROUP: tensors}, {"first": self._written})
        except UserError as failure:  # a full disk costs what is kept, not the scores
            assert self._trainings.checkpoints is not None
            self._trainings.checkpoints.log(f"warning: features are not kept for a call that goes on: {failure}")
            self._folder = None
        self._pending, self._written = [], images
        now = time.monotonic()
        self._next = now + max(resumption.SECONDS_BETWEEN, (now - started) / resumption.LARGEST_SHARE)
