"""Stochastic depth (Huang et al.): which branches of an encoder each image takes, drawn outside the network."""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_paths(rate: float, depth: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the paths (B, depth, 2) that each image takes, drawn from its own generator.

    A branch of block k is closed with a probability that grows from 0 to `rate` over the blocks, and counts
    1 / (1 - probability) where it is open, as timm's DropPath. That one draws from the global generator, and so would
    depend on the number of processes.
    """
    open_share = 1 - torch.linspace(0, rate, depth).unsqueeze(1)
    draws = [torch.rand(depth, 2, generator=generator) for generator in generators]
    return (torch.stack(draws) < open_share) / open_share
