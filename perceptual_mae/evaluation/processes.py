"""What several processes agree on."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

Value = TypeVar("Value")

CHECK_EVERY = 10
"""Steps on a GPU between which several processes agree on what one of them was asked for."""


def own_share(indices: Sequence[int], batch_size: int, accelerator: Accelerator) -> list[int]:
    """Return the indices of every P-th batch from this process's on, of P processes.

    Each image thus counts once, in the same batch as with one process.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    starts = range(rank * batch_size, len(indices), processes * batch_size)
    return [index for start in starts for index in indices[start : start + batch_size]]


def as_main_process(value: Value) -> Value:
    """Return the main process's value on all processes."""
    shared: Value = broadcast_object_list([value])[0]
    return shared


def most_urgent(request: int, accelerator: Accelerator, step: int, *, always: bool = False) -> int:
    """Return the largest request of all processes, which all call this after the same step; 0 is none.

    With several processes on GPUs only every tenth step asks the others and the rest have none, unless `always`.
    """
    if accelerator.num_processes == 1:
        return request
    on_host = accelerator.device.type == "cpu"  # there a step is long, and asking costs next to nothing
    if not on_host and not always and step % CHECK_EVERY:
        return 0
    requests = accelerator.gather(torch.tensor([request], device=accelerator.device))
    return int(requests.max())
