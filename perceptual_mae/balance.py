"""Weights that hold a term's gradient at a share of L1's, measured where all paths of the decoder join.

With a constant adversarial weight of 1 (Perceptual MAE eq. 6) the adversarial gradient exceeds L1's many times and
the generator learns to ignore its input, with every loss finite. The coefficient is therefore

    min(cap, share * |dL1/dz| / |dL/dz|),    z = the decoder's input tokens,

with both norms measured every few steps and smoothed. The norms are those of the global batch: squares are summed
over micro-batches and processes, and a measurement counts from the step after it, so that neither the number of
processes nor of micro-batches changes a run. Until the first measurement a balanced term has weight 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MEASURING_SCALE = 2.0**14
"""Lifts gradients of means over millions of pixels above what float16 can hold; the norms are scaled back."""


class Balance:
    """Smoothed gradient norms of some terms at the decoder's input."""

    def __init__(self, every: int = 8, decay: float = 0.8) -> None:
        self.every, self.decay = every, decay
        self.norms: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def add(self, raw: dict[str, Tensor], latent: Tensor) -> None:
        """Add one micro-batch: unweighted terms and the decoder's input (B, 1+L, d) they were computed from."""
        for name, value in raw.items():
            # A term may not look at the decoder's output at all; its gradient is then zero.
            (gradient,) = torch.autograd.grad(value * MEASURING_SCALE, latent, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(latent) if gradient is None else gradient
            square = (gradient.to(value.dtype) / MEASURING_SCALE).square().sum()
            self._squares[name] = self._squares.get(name, torch.zeros_like(square)) + square

    def finish(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Close a measurement: `reduce_sum` adds a tensor over all processes."""
        if not self._squares:
            return
        names = sorted(self._squares)
        squares = reduce_sum(torch.stack([self._squares[name] for name in names]))
        self._squares = {}
        for name, norm in zip(names, squares.sqrt().unbind(), strict=True):
            before = self.norms.get(name, norm)
            smoothed = torch.where(before.isfinite(), self.decay * before + (1 - self.decay) * norm, norm)
            self.norms[name] = torch.where(norm.isfinite(), smoothed, before)  # an overflow (fp16) must not stay

    def coefficient(self, name: str, share: float, cap: float) -> float | Tensor:
        """Return the weight of a balanced term: a detached scalar, 0 before the first measurement."""
        if name not in self.norms or "l1" not in self.norms:
            return 0.0
        anchor, norm = self.norms["l1"], self.norms[name]
        coefficient = (share * anchor / norm.clamp_min(1e-12)).clamp_max(cap)
        return torch.where(anchor.isfinite() & norm.isfinite(), coefficient, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"norm.{name}": value for name, value in self.norms.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.norms = {key.removeprefix("norm."): value for key, value in state.items()}
