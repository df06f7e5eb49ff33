"""Gradients of losses at the generator's ends: pulled there term by term, pushed into the generator in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
"""One for each end; None where a loss does not read it."""


def pull(loss: Tensor, ends: Sequence[Tensor], *, keep_graph: bool = True) -> Gradients:
    """Return a scalar's gradients at the ends; no parameter's gradient is touched."""
    return torch.autograd.grad(loss, tuple(ends), retain_graph=keep_graph, allow_unused=True)


def push(gradients: Gradients, ends: Sequence[Tensor]) -> None:
    """Carry gradients at the (attached) ends into the parameters behind them."""
    read = [(end, gradient) for end, gradient in zip(ends, gradients, strict=True) if gradient is not None]
    torch.autograd.backward([end for end, _ in read], [gradient for _, gradient in read])


def weighted_sum(parts: Sequence[tuple[float | Tensor, Gradients]]) -> Gradients:
    """Return the sum of weights x gradients, end by end."""

    if len(parts) == 1 and parts[0][0] == 1.0:
        return parts[0][1]  # most steps: nothing is measured, all terms come together

    def at(place: int) -> Tensor | None:
        read = [weight * gradient for weight, part in parts if (gradient := part[place]) is not None]
        return sum(read[1:], read[0]) if read else None

    return tuple(at(place) for place in range(len(parts[0][1])))


def at_decoder_input(gradients: Gradients, ends: Sequence[Tensor]) -> Tensor:
    """Return what gradients at the (attached) ends, of which the latent is the last, come to at the latent (B, 1+L, d).

    It is where the paths of all levels join, so norms of several terms can be compared there.
    """
    latent, direct = ends[-1], gradients[-1]
    above = [(end, gradient) for end, gradient in zip(ends[:-1], gradients, strict=False) if gradient is not None]
    arrived = torch.zeros_like(latent) if direct is None else direct
    if above:
        levels, pulls = zip(*above, strict=True)
        (through,) = torch.autograd.grad(levels, latent, pulls, retain_graph=True, allow_unused=True)
        arrived = arrived if through is None else arrived + through
    return arrived
