"""Weights that hold a term's gradient at a share of L1's, measured where all paths of the decoder join.

With a constant adversarial weight of 1 (Perceptual MAE eq. 6) the adversarial gradient exceeds L1's many times and
the generator learns to ignore its input, with every loss finite. The coefficient is therefore

    min(cap, share * |dL1/dz| / |dL/dz|),    z = the decoder's input tokens,

with both norms measured every few steps and smoothed. The norms are those of the global batch: squares are summed
over micro-batches and processes, and a measurement counts from the step after it, so that neither the number of
processes nor of micro-batches changes a run. Until the first measurement a balanced term has weight 0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from perceptual_mae.generator.reconstruction import Reconstruction

Norms = dict[str, dict[str, Tensor]]
"""Gradient norms of terms by name, then by place: `decoder` (its input), and the levels by their size (`32`)."""


class GradientBalance:
    """Gradient norms of unweighted terms, measured every few steps; those at the decoder's input are smoothed.

    `balanced` names the terms whose weight follows L1's gradient. All terms are measured together about every
    `telemetry_every` steps, when a measurement is due anyway: it costs a backward pass a term, and changes nothing.
    """

    def __init__(
        self, balanced: Sequence[str] = (), telemetry_every: int = 50, *, every: int = 8, decay: float = 0.8
    ) -> None:
        self.balanced, self.telemetry_every, self.every, self.decay = tuple(balanced), telemetry_every, every, decay
        self.norms: dict[str, Tensor] = {}
        """Smoothed norms at the decoder's input."""
        self._squares: dict[tuple[str, str], Tensor] = {}
        self._micro_batches = 0

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def anchored_terms(self, active: Iterable[str]) -> list[str]:
        """Name L1 and the balanced terms among those that are on; none where no weight follows L1's gradient."""
        return [name for name in active if name == "l1" or name in self.balanced] if self.balanced else []

    def telemetry_terms(self, active: Sequence[str], step: int) -> list[str]:
        """Name all terms that are on, where it is time to measure them all and there are several to compare."""
        return list(active) if step % self.telemetry_every < self.every and len(active) > 1 else []

    def measure(
        self, raw: Mapping[str, Tensor], reconstruction: Reconstruction, step: int, scale: float | Tensor = 1.0
    ) -> None:
        """Add one micro-batch: gradients of its unweighted losses at every level and at the decoder's input.

        `scale` (fp16) multiplies the losses on the way back and is divided out. No parameter's gradient is touched.
        """
        levels, latent = reconstruction.prediction, reconstruction.latent
        terms = dict.fromkeys([*self.anchored_terms(raw), *self.telemetry_terms(list(raw), step)])
        for name in terms:
            *above, decoder = torch.autograd.grad(
                raw[name] * scale, (*levels, latent), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            places = {"decoder": decoder}
            if len(levels) > 1:
                places |= {level_name(level): gradient for level, gradient in zip(levels, above, strict=True)}
            for place, gradient in places.items():
                full = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale
                square = full.square().sum()
                self._squares[name, place] = self._squares.get((name, place), torch.zeros_like(square)) + square
        self._micro_batches += bool(terms)

    def finish(self, reduce_sum: Callable[[Tensor], Tensor]) -> Norms:
        """Close a measurement and return the norms of the global batch: `reduce_sum` adds a tensor over processes."""
        if not self._squares:
            return {}
        keys = sorted(self._squares)
        squares = [self._squares[key] for key in keys]
        count = squares[0].new_tensor(self._micro_batches)
        *sums, parts = reduce_sum(torch.stack([*squares, count])).unbind()
        self._squares, self._micro_batches = {}, 0
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


def level_name(level: Tensor) -> str:
    """Return a level's size in pixels as telemetry names it: `32`, or `32x64` where sides differ."""
    height, width = level.shape[-2:]
    return f"{height}" if height == width else f"{height}x{width}"
