"""Checkpoints written by a thread: training waits for a copy of its tensors, not for the disk."""

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.run import checkpoint

log = logging.getLogger(__name__)

Tensors = Mapping[str, Mapping[str, Tensor]]


class CheckpointWriter:
    """Writes one checkpoint at a time, as `checkpoint.save` does; the next one waits for it.

    Whatever a write raised is raised by the next `write` or `wait`, in the thread that trains.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def write(
        self,
        folder: Path,
        step: int,
        tensors: Tensors,
        metadata: Mapping[str, Any],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy tensors and metadata to the host's memory and begin to write them; `after` is called once it is done.

        Tensors may change as soon as this returns.
        """
        self.wait()
        arguments = (folder, step, _on_host(tensors), copy.deepcopy(dict(metadata)), after)
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is whole; raise what kept it from that."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait as `wait` does, where something else has ended the run: a failure is logged."""
        try:
            self.wait()
        except Exception as failure:
            log.error("the last checkpoint was not written: %s", failure)

    def _run(
        self, folder: Path, step: int, tensors: Tensors, metadata: Mapping[str, Any], after: Callable[[], None]
    ) -> None:
        try:
            checkpoint.save(folder, step, tensors, metadata)
            after()
        except BaseException as failure:
            self._failure = failure


def _on_host(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """Return copies of named groups of tensors in the host's memory, contiguous."""
    return {
        group: {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in named.items()
        }
        for group, named in tensors.items()
    }
