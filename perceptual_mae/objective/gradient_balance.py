"""Weights that hold a term's gradient at a share of the reconstruction's, measured where a term's influence shows.

With a constant adversarial weight of 1 (Perceptual MAE eq. 6) the adversarial gradient exceeds L1's many times and
the generator learns to ignore its input, with every loss finite. The coefficient is therefore

    min(cap, share * |d anchor / d place| / |d term / d place|)

with both norms measured every few steps and smoothed. The anchor is L1 or all of the reconstruction's terms, as they
are weighted; the place is the decoder's input, where all paths of its heads join, or weights of the decoder, which are
what the optimiser moves. The norms are those of the global batch, and a measurement counts from the step after it, so
that neither the number of processes nor of micro-batches changes a run. Until its first measurement a balanced term has
weight 0.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.schedules import Balanced

INPUT, WEIGHTS, LAST_LAYER = "decoder", "decoder_weights", "last_layer"
PLACES = {"decoder_input": INPUT, "decoder": WEIGHTS, "last_layer": LAST_LAYER}
"""Where a balance measures, by the value of `at`; the names are those of telemetry."""
RECONSTRUCTION = "reconstruction"
"""The anchor that is the sum of several terms."""
TELEMETRY_GRID = 8
"""All terms are measured in multiples of so many steps only."""

Norms = dict[str, dict[str, Tensor]]
"""Gradient norms of terms by name, then by place: those of PLACES, and levels by their size in pixels (`32`)."""


class GradientBalance:
    """Gradient norms of unweighted terms, measured every few steps; those that weights follow are smoothed.

    `balanced` are the weights that follow an anchor's gradient, by term. All terms are measured together about every
    `telemetry_every` steps: it costs a backward pass a term, and changes nothing.
    """

    def __init__(
        self, balanced: Mapping[str, Balanced] | None = None, telemetry_every: int = 50, *, decay: float = 0.8
    ) -> None:
        self.balanced, self.telemetry_every, self.decay = dict(balanced or {}), telemetry_every, decay
        self.keys = {
            name: (norm_key(weight.anchor, PLACES[weight.at]), norm_key(name, PLACES[weight.at]))
            for name, weight in self.balanced.items()
        }
        """Keys of the norms that each balanced weight follows: its anchor's and its own."""
        self.norms: dict[str, Tensor] = {}
        """Smoothed norms by `norm_key`."""
        self._squares: dict[tuple[str, str], Tensor] = {}
        self._gradients: dict[tuple[str, str], Tensor] = {}
        self._micro_batches = 0

    def is_due(self, step: int) -> bool:
        return step % TELEMETRY_GRID == 0 or any(step % weight.every == 0 for weight in self.balanced.values())

    def balanced_terms(self, active: Sequence[str], step: int) -> list[str]:
        """Name the balanced terms that are on and measured at this step."""
        return [name for name, weight in self.balanced.items() if name in active and step % weight.every == 0]

    def telemetry_terms(self, active: Sequence[str], step: int) -> list[str]:
        """Name all terms that are on, where it is time to measure them all and there are several to compare."""
        is_time = step % TELEMETRY_GRID == 0 and step % self.telemetry_every < TELEMETRY_GRID
        return list(active) if is_time and len(active) > 1 else []

    def measure(
        self,
        losses: Mapping[str, Tensor],
        reconstruction: Reconstruction,
        weights: Mapping[str, Sequence[Tensor]],
        step: int,
        scale: float | Tensor = 1.0,
    ) -> None:
        """Add one micro-batch: gradients of its unweighted losses, and of the weighted anchor `reconstruction`.

        weights: those of the decoder by place. `scale` (fp16) multiplies the losses on the way back and is divided
        out. No parameter's gradient is touched.
        """
        terms = [name for name in losses if name != RECONSTRUCTION]
        places: dict[str, list[str]] = {}
        for name in self.balanced_terms(terms, step):
            balance = self.balanced[name]
            for loss in (balance.anchor, name):
                places.setdefault(loss, []).append(PLACES[balance.at])
        levels, telemetry = reconstruction.prediction, self.telemetry_terms(terms, step)
        for name in telemetry:
            places.setdefault(name, []).extend([INPUT, *weights])
        tensors: dict[str, Sequence[Tensor]] = {INPUT: (reconstruction.latent,), **weights}
        for name, wanted in places.items():
            targets = {place: tensors[place] for place in dict.fromkeys(wanted)}
            if name in telemetry and len(levels) > 1:
                targets |= {level_name(level): (level,) for level in levels}
            flat = [tensor for group in targets.values() for tensor in group]
            gradients = iter(
                torch.autograd.grad(
                    losses[name] * scale, flat, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            )
            for place, group in targets.items():
                parts = [next(gradients).to(torch.promote_types(each.dtype, torch.float32)) / scale for each in group]
                if place in weights:  # images add up in a weight's gradient: its norm is that of the sum
                    gradient = torch.cat([part.flatten() for part in parts])
                    _add(self._gradients, (name, place), gradient)
                else:
                    _add(self._squares, (name, place), parts[0].square().sum())
        self._micro_batches += bool(places)

    def finish(self, reduce_sum: Callable[[Tensor], Tensor]) -> Norms:
        """Close a measurement and return the norms of the global batch: `reduce_sum` adds a tensor over processes."""
        if not self._micro_batches:
            return {}
        some = next(iter((self._squares or self._gradients).values()))
        squares = torch.stack([*self._squares.values(), some.new_full((), self._micro_batches)])
        *sums, parts = reduce_sum(squares).unbind()
        norms = {key: square.sqrt() / parts for key, square in zip(self._squares, sums, strict=True)}
        if self._gradients:
            together = reduce_sum(torch.cat(list(self._gradients.values())))
            split = torch.split(together, [len(gradient) for gradient in self._gradients.values()])
            norms |= {key: gradient.norm() / parts for key, gradient in zip(self._gradients, split, strict=True)}
        self._squares, self._gradients, self._micro_batches = {}, {}, 0
        measured: Norms = {}
        for (name, place), norm in norms.items():
            measured.setdefault(name, {})[place] = norm
        return measured

    def follow(self, measured: Norms, terms: Sequence[str]) -> None:
        """Move the smoothed norms of these balanced terms and of their anchors towards what was measured."""
        latest = {norm_key(name, place): norm for name, norms in measured.items() for place, norm in norms.items()}
        for key in dict.fromkeys(key for term in terms for key in self.keys[term]):
            norm, before = latest[key], self.norms.get(key, latest[key])
            smoothed = torch.where(before.isfinite(), self.decay * before + (1 - self.decay) * norm, norm)
            self.norms[key] = torch.where(norm.isfinite(), smoothed, before)  # an overflow (fp16) must not stay

    def ratio(self, name: str, l1_weight: float | Tensor) -> Tensor | None:
        """Return the anchor's norm, as weighted, over a balanced term's, unweighted; None before it is measured."""
        anchor, own = self.keys[name]
        if anchor not in self.norms or own not in self.norms:
            return None
        weight = l1_weight if self.balanced[name].anchor == "l1" else 1.0
        return self.norms[anchor] * weight / self.norms[own].clamp_min(1e-12)

    def coefficient(self, name: str, l1_weight: float | Tensor = 1.0) -> float | Tensor:
        """Return the weight of a balanced term: a detached scalar, 0 before the first measurement."""
        ratio, weight = self.ratio(name, l1_weight), self.balanced[name]
        if ratio is None:
            return 0.0
        return torch.where(ratio.isfinite(), (weight.balanced * ratio).clamp_max(weight.cap), 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"norm.{name}": value for name, value in self.norms.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.norms = {key.removeprefix("norm."): value for key, value in state.items()}


def norm_key(name: str, place: str) -> str:
    """Return the key of a smoothed norm: `l1` at the decoder's input, `l1@last_layer` elsewhere."""
    return name if place == INPUT else f"{name}@{place}"


def level_name(level: Tensor) -> str:
    """Return a level's size in pixels as telemetry names it: `32`, or `32x64` where sides differ."""
    height, width = level.shape[-2:]
    return f"{height}" if height == width else f"{height}x{width}"


def _add(sums: dict[tuple[str, str], Tensor], key: tuple[str, str], value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value
