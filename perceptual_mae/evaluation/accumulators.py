"""Accumulators of scores over batches of reconstructions, and the gathering of what several processes accumulated.

Shapes: B images, C channels, H x W pixels, L patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ReconstructionBatch:
    """A batch of originals and their reconstructions; images are float32 (B, C, H, W) in [0, 1], clamped.

    `raw` is the generator's whole output, `composite` has the visible pixels of the original. `baselines` are further
    composites by name, of fillings that learn nothing (empty unless asked for). `mask` is bool (B, L), True = hidden;
    `hidden` the same for pixels, float (B, 1, H, W), 1 = hidden. `indices` (B,), on the CPU, are places in the data set
    and never repeat, neither in a process nor between two; `labels` (B,) are -1 where there are none.
    """

    originals: Tensor
    raw: Tensor
    composite: Tensor
    mask: Tensor
    hidden: Tensor
    indices: Tensor
    labels: Tensor
    baselines: Mapping[str, Tensor] = field(default_factory=dict)


class Gather:
    """Gathers tensors of all processes. All of them must call the same methods in the same order."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._is_alone, self._is_main = accelerator.num_processes == 1, accelerator.is_main_process

    def rows(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N,) indices in ascending order and their rows (N, ...), on the CPU, each index once.

        Given each process's own. On all but the main process both come back empty: a few thousand rows travel at once.
        """
        indices, values = indices.cpu(), values.cpu()
        if not self._is_alone:
            rounds = max(gather_object([-(-len(indices) // ROWS_AT_ONCE)]))
            gathered = [(indices[:0], values[:0])]
            for turn in range(rounds):
                part = slice(turn * ROWS_AT_ONCE, (turn + 1) * ROWS_AT_ONCE)
                parts = gather_object([(indices[part], values[part])])
                gathered += parts if self._is_main else []
            # A process without images may not know how wide a row is.
            filled = [pair for pair in gathered if len(pair[0])] or gathered[:1]
            indices, values = (torch.cat(parts) for parts in zip(*filled, strict=True))
        order = indices.argsort(stable=True)
        indices, values = indices[order], values[order]
        first = torch.ones_like(indices, dtype=torch.bool)
        first[1:] = indices[1:] != indices[:-1]
        return indices[first], values[first]

    def total(self, values: Tensor) -> Tensor:
        """Return, on every process, the sum of `values` over processes, added up in their order (use float64)."""
        parts: list[Tensor] = [values.cpu()] if self._is_alone else gather_object([values.cpu()])
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total


class Accumulator(Protocol):
    """Takes in each batch once, then computes its part of the report.

    `update` must wait for no other process: processes take batches in turns and need not have the same number of them.
    """

    def update(self, batch: ReconstructionBatch) -> None:
        """Take in a batch; keep no images of it, for memory must not grow with the number of images."""

    def compute(self, gather: Gather) -> Mapping[str, Any]:
        """Return what goes into the report, merged into it key by key at every level (see `merge_into`).

        For example {"scores": {"raw": {"fid": 31.2}, "composite": {"fid": 20.1}}, "fid": {"num_images": 1000}}. All
        processes call it, so that they can gather; only the main one's report counts.
        """


def merge_into(report: dict[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a part into the report, in place: mappings key by key, anything else replaces what was there."""
    for key, value in part.items():
        if isinstance(value, Mapping) and isinstance(report.get(key), dict):
            merge_into(report[key], value)
        else:
            report[key] = merge_into({}, value) if isinstance(value, Mapping) else value
    return report
