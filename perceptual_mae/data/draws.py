"""Masks and drop-path masks of a batch, as functions of (seed, pass over the data, sample index)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perceptual_mae.data.loading import Batch
from perceptual_mae.images import Size
from perceptual_mae.masking import draw_masks, num_hidden
from perceptual_mae.schedules import Ramp, TrainingProgress, value_at
from perceptual_mae.seeding import stream

Attention = Callable[[Batch], Tensor]
"""How much the encoder's class token attends to the patches of a batch's whole images, (B, L), without gradient."""


@dataclass(frozen=True)
class TrainingMasks:
    """Draws a training batch's masks (B, L): functions of (seed, pass over the data, sample index) and the ratio.

    draw: a kind of `MASKINGS` with its options. ratio: a share, or a ramp over the run. attention: source of the
    encoder's attention for a masking that needs it, else None.
    """

    draw: Callable[..., Tensor]
    ratio: float | Ramp
    grid: Size
    seed: int
    attention: Attention | None = None

    def __call__(self, batch: Batch, progress: TrainingProgress) -> Tensor:
        hidden = num_hidden(self.grid[0] * self.grid[1], value_at(self.ratio, progress.fraction))
        attention = self.attention(batch).cpu() if self.attention is not None else None
        return draw_masks(self.draw, self.grid, hidden, batch.draws("mask", self.seed), attention)


@dataclass(frozen=True)
class FixedMasks:
    """Draws masks for held-out images: functions of (evaluation seed, sample index), the same at every evaluation."""

    draw: Callable[..., Tensor]
    ratio: float
    grid: Size
    seed: int

    def __call__(self, batch: Batch) -> Tensor:
        """Return bool masks (B, L), True = hidden."""
        hidden = num_hidden(self.grid[0] * self.grid[1], self.ratio)
        generators = [stream("evaluation mask", self.seed, index) for index in batch.indices.tolist()]
        return draw_masks(self.draw, self.grid, hidden, generators)


@dataclass(frozen=True)
class DropPathMasks:
    """Draws a training batch's drop-path masks (B, depth, 2): functions of (seed, pass over the data, sample index)."""

    rate: float
    depth: int
    seed: int

    def __call__(self, batch: Batch) -> Tensor:
        return draw_drop_path_masks(self.rate, self.depth, batch.draws("drop path", self.seed))


def draw_drop_path_masks(rate: float, depth: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Return factors (B, depth, 2) of the branches (attention, MLP) of each block, drawn from each image's generator.

    A branch of block k has factor 0 with a probability that grows from 0 to `rate` over the blocks, and otherwise
    1 / (1 - probability), as timm's DropPath. timm draws from the global generator: its masks would depend on the
    number of processes.
    """
    open_share = 1 - torch.linspace(0, rate, depth).unsqueeze(1)
    draws = [torch.rand(depth, 2, generator=generator) for generator in generators]
    return (torch.stack(draws) < open_share) / open_share
