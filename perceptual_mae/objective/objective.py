"""The generator's objective: weights x terms x phases (Perceptual MAE eq. 6).

The table `losses.TERMS` reads as the equation does. A term is a pure function of what its line says it reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.loss_networks import LIVE
from perceptual_mae.losses import FEATURES, Term
from perceptual_mae.objective.gradient_balance import GradientBalance
from perceptual_mae.objective.term_inputs import TermInputs
from perceptual_mae.schedules import Balanced, TrainingProgress, Weight, When, is_active, value_at


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

    def __call__(self, inputs: TermInputs) -> Tensor:
        """Return the unweighted loss (a scalar) of what the term reads."""
        fields = [
            inputs.features(name, self.network) if name in FEATURES else getattr(inputs, name)
            for name in self.term.reads
        ]
        return self.term.function(*fields, **self.options)


@dataclass(frozen=True)
class Losses:
    """The total of one step and its parts by name, before and after weighting (scalars, attached to the graph)."""

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]


class Objective:
    """The weighted sum of the terms that are on, and the balance of those whose weight follows L1's gradient."""

    def __init__(self, lines: Mapping[str, WeightedTerm], telemetry_every: int = 50) -> None:
        self.lines = dict(lines)
        balanced = [name for name, line in self.lines.items() if isinstance(line.weight, Balanced)]
        self.balance = GradientBalance(balanced, telemetry_every)

    def weights(self, progress: TrainingProgress) -> dict[str, float | Tensor]:
        """Return the weights of the terms that are on; those whose number is zero are off and not computed."""
        weights: dict[str, float | Tensor] = {}
        for name, line in self.lines.items():
            if not is_active(line.when, progress):
                continue
            if isinstance(line.weight, Balanced):
                weights[name] = self.balance.coefficient(name, line.weight.balanced, line.weight.cap)
            elif weight := value_at(line.weight, progress.fraction):
                weights[name] = weight
        return weights

    def active(self, progress: TrainingProgress) -> list[str]:
        """Name the terms that are on."""
        return list(self.weights(progress))

    def reads(self, progress: TrainingProgress) -> set[str]:
        """Name what the terms that are on read; features count where they are the discriminator's own."""
        lines = [self.lines[name] for name in self.weights(progress)]
        return {name for line in lines for name in line.term.reads if line.network == LIVE or name not in FEATURES}

    def __call__(self, inputs: TermInputs, progress: TrainingProgress) -> Losses:
        raw, weighted = {}, {}
        for name, weight in self.weights(progress).items():
            raw[name] = self.lines[name](inputs)
            weighted[name] = raw[name] * weight
        assert weighted, f"no term is on in epoch {progress.epoch}, step {progress.step}"
        return Losses(torch.stack(tuple(weighted.values())).sum(), raw, weighted)

    def conclude(self, progress: TrainingProgress, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Close a step's measurement over all micro-batches and processes; return what is recorded of it, by name.

        `gradient_ratio/TERM`: a balanced term's weighted gradient at the decoder's input, relative to L1's, smoothed.
        `gradient/PLACE/TERM`: every weighted term's gradient norm; `gradient_share/PLACE/TERM`: its part of their sum.
        """
        norms = self.balance.finish(reduce_sum)
        if not norms:
            return {}
        before, active = self.weights(progress), self.active(progress)
        self.balance.follow({name: norms[name]["decoder"] for name in self.balance.anchored_terms(active)})
        scalars = {f"gradient_ratio/{name}": ratio for name, ratio in self._ratios(progress).items()}
        # What the terms weigh in this step; from the next one on, balanced weights follow what was measured here.
        terms = self.balance.telemetry_terms(active, progress.step)
        for place in norms[terms[0]] if terms else ():
            weighted = {name: norms[name][place] * before[name] for name in terms}
            total = torch.stack(list(weighted.values())).sum().clamp_min(1e-20)
            scalars |= {f"gradient/{place}/{name}": norm for name, norm in weighted.items()}
            scalars |= {f"gradient_share/{place}/{name}": norm / total for name, norm in weighted.items()}
        return scalars

    def _ratios(self, progress: TrainingProgress) -> dict[str, Tensor]:
        weights, norms = self.weights(progress), self.balance.norms
        if "l1" not in norms or "l1" not in self.lines:
            return {}
        l1 = norms["l1"] * weights.get("l1", 0.0)
        names = [name for name in self.balance.anchored_terms(weights) if name != "l1"]
        return {name: norms[name] * weights[name] / l1 for name in names}
