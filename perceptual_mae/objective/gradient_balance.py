"""Weights that hold a term's gradient at a share of L1's, measured where all paths of the decoder join.

With a constant adversarial weight of 1 (Perceptual MAE eq. 6) the adversarial gradient exceeds L1's many times and
the generator learns to ignore its input, with every loss finite. The coefficient is therefore

    min(cap, share * |dL1/dz| / |dL/dz|),    z = the decoder's input tokens,

with both norms measured every few steps and smoothed. The norms are those of the global batch: squares are summed
over micro-batches and processes, and a measurement counts from the step after it, so that neither the number of
processes nor of micro-batches changes a run. Until the first measurement a balanced term has weight 0.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Norms = dict[str, dict[str, Tensor]]
"""Gradient norms of terms by name, then by place: `decoder` (its input), and the levels by their size (`32`)."""


class Balance:
    """Gradient norms of unweighted terms, measured place by place; those at the decoder's input are smoothed."""

    def __init__(self, every: int = 8, decay: float = 0.8) -> None:
        self.every, self.decay = every, decay
        self.norms: dict[str, Tensor] = {}
        """Smoothed norms at the decoder's input."""
        self._squares: dict[tuple[str, str], Tensor] = {}
        self._parts = 0

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def add(self, gradients: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Add one micro-batch: the gradients of its mean losses by name and place."""
        for name, places in gradients.items():
            for place, gradient in places.items():
                full = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                square = full.square().sum()
                self._squares[name, place] = self._squares.get((name, place), torch.zeros_like(square)) + square
        self._parts += 1

    def finish(self, reduce_sum: Callable[[Tensor], Tensor]) -> Norms:
        """Close a measurement and return the norms of the global batch: `reduce_sum` adds a tensor over processes."""
        if not self._squares:
            return {}
        keys = sorted(self._squares)
        squares = [self._squares[key] for key in keys]
        *sums, parts = reduce_sum(torch.stack([*squares, squares[0].new_tensor(self._parts)])).unbind()
        self._squares, self._parts = {}, 0
        measured: Norms = {}
        for (name, place), square in zip(keys, sums, strict=True):
            measured.setdefault(name, {})[place] = square.sqrt() / parts
        return measured

    def follow(self, measured: Mapping[str, Tensor]) -> None:
        """Move the smoothed norms towards these, measured at the decoder's input."""
        for name, norm in measured.items():
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
