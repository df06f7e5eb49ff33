"""The generator's objective: weights x terms x phases (Perceptual MAE eq. 6).

The table TERMS reads as the equation does. A term is a pure function of what its line says it reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.loss_networks import LIVE
from perceptual_mae.losses import Term
from perceptual_mae.objective.gradient_balance import Balance
from perceptual_mae.objective.term_inputs import TermInputs
from perceptual_mae.schedules import Balanced, TrainingProgress, Weight, When, is_active, value_at
from perceptual_mae.training.gradients import Gradients, at_decoder_input, pull, weighted_sum


@dataclass(frozen=True)
class WeightedTerm:
    """One line of an objective: a term with its options, its weight, the phase in which it is on, and its network.

    network: the key of the loss network whose features the term compares, where it compares features.
    """

    term: Term
    weight: Weight = 1.0
    when: When = "always"
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = LIVE

    def __call__(self, seen: TermInputs) -> Tensor:
        """Return the unweighted loss (a scalar) of what the term reads."""
        return self.term.function(*(seen.read(name, self.network) for name in self.term.reads), **self.options)


@dataclass(frozen=True)
class Losses:
    """The total of one step and its parts by name, before and after weighting (scalars, attached to the graph)."""

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]


class Objective:
    """The weighted sum of the terms that are on, and the balance of those whose weight follows L1's gradient.

    Every `telemetry_every` steps or a few more, when the balance is measured anyway, all terms' gradients are looked
    at: it costs a pass a term, and changes nothing.
    """

    def __init__(self, lines: Mapping[str, WeightedTerm], telemetry_every: int = 50) -> None:
        self.lines, self.telemetry_every = dict(lines), telemetry_every
        self.balance = Balance()
        self.balanced = [name for name, line in self.lines.items() if isinstance(line.weight, Balanced)]

    def active(self, progress: TrainingProgress) -> list[str]:
        """Name the terms that are on at this progress; those whose weight is zero are not computed."""
        return [
            name
            for name, line in self.lines.items()
            if is_active(line.when, progress)
            and (isinstance(line.weight, Balanced) or value_at(line.weight, progress.fraction))
        ]

    def __call__(self, seen: TermInputs, progress: TrainingProgress) -> Losses:
        raw, weighted = {}, {}
        for name in self.active(progress):
            raw[name] = self.lines[name](seen)
            weighted[name] = raw[name] * self._weight(name, progress)
        assert weighted, f"no term is on in epoch {progress.epoch}, step {progress.step}"
        return Losses(torch.stack(tuple(weighted.values())).sum(), raw, weighted)

    def gradients(
        self,
        losses: Losses,
        seen: Reconstruction,
        attached: Reconstruction,
        progress: TrainingProgress,
        scale: float | Tensor,
    ) -> Gradients:
        """Return `scale` times the total's gradients at the ends of the severed reconstruction that the terms `seen`.

        Terms that are measured in this step are differentiated one by one, down to the decoder's input.
        """
        apart, watched = self.balanced_now(progress), self.watched_now(progress)
        pulled = {name: pull(losses.raw[name] * scale, seen.ends) for name in {**apart, **watched}}
        if pulled:
            self.balance.add({name: self._places(pulled[name], attached, scale) for name in pulled})
        parts = [(self._weight(name, progress), pulled[name]) for name in apart]
        if together := [value for name, value in losses.weighted.items() if name not in apart]:
            parts.append((1.0, pull(torch.stack(together).sum() * scale, seen.ends, keep_graph=False)))
        return weighted_sum(parts)

    def conclude(self, progress: TrainingProgress, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Close a step's measurement over all micro-batches and processes; return what it found, by name.

        `gradient_ratio/TERM`: a balanced term's weighted gradient at the decoder's input, relative to L1's, smoothed.
        `gradient/PLACE/TERM`: every weighted term's gradient norm; `gradient_share/PLACE/TERM`: its part of their sum.
        """
        measured = self.balance.finish(reduce_sum)
        if not measured:
            return {}
        # The weights of this step; from the next one on, those of balanced terms follow what is found here.
        weights = {name: self._weight(name, progress) for name in measured}
        self.balance.follow({name: measured[name]["decoder"] for name in self.balanced_now(progress)})
        told = {f"gradient_ratio/{name}": ratio for name, ratio in self._ratios(progress).items()}
        watched = list(self.watched_now(progress))
        for place in measured[watched[0]] if watched else ():
            norms = {name: measured[name][place] * weights[name] for name in watched}
            total = torch.stack(list(norms.values())).sum().clamp_min(1e-20)
            told |= {f"gradient/{place}/{name}": norm for name, norm in norms.items()}
            told |= {f"gradient_share/{place}/{name}": norm / total for name, norm in norms.items()}
        return told

    def balanced_now(self, progress: TrainingProgress) -> dict[str, None]:
        """Name L1 and the balanced terms that are on, where their gradients are due; the rest goes together."""
        if not self.balanced or not self.balance.is_due(progress.step):
            return {}
        return {name: None for name in self.active(progress) if name == "l1" or name in self.balanced}

    def watched_now(self, progress: TrainingProgress) -> dict[str, None]:
        """Name all terms that are on, where it is time to look at them and there are several to compare."""
        active = self.active(progress)
        is_time = self.balance.is_due(progress.step) and progress.step % self.telemetry_every < self.balance.every
        return dict.fromkeys(active) if is_time and len(active) > 1 else {}

    def _places(self, gradients: Gradients, attached: Reconstruction, scale: float | Tensor) -> dict[str, Tensor]:
        """Return a term's gradients by place: the decoder's input and, where there is a pyramid, each level's size."""
        places = {"decoder": at_decoder_input(gradients, attached.ends)}
        levels = attached.prediction if len(attached.prediction) > 1 else ()
        for level, gradient in zip(levels, gradients, strict=False):
            height, width = level.shape[-2:]
            name = f"{height}" if height == width else f"{height}x{width}"
            places[name] = torch.zeros_like(level) if gradient is None else gradient
        return {place: gradient / scale for place, gradient in places.items()}

    def _ratios(self, progress: TrainingProgress) -> dict[str, Tensor]:
        anchor = self.balance.norms.get("l1")
        if anchor is None or "l1" not in self.lines:
            return {}
        reference = anchor * self._weight("l1", progress)
        names = [name for name in self.balanced_now(progress) if name != "l1"]
        return {name: self.balance.norms[name] * self._weight(name, progress) / reference for name in names}

    def _weight(self, name: str, progress: TrainingProgress) -> float | Tensor:
        weight = self.lines[name].weight
        if isinstance(weight, Balanced):
            return self.balance.coefficient(name, weight.balanced, weight.cap)
        return value_at(weight, progress.fraction)
