"""The generator's objective: weights x terms x phases (Perceptual MAE eq. 6).

The table `losses.TERMS` reads as the equation does. A term is a pure function of what its line says it reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from perceptual_mae.loss_networks import LIVE
from perceptual_mae.losses import FEATURES, Term
from perceptual_mae.objective.gradient_balance import RECONSTRUCTION, GradientBalance
from perceptual_mae.objective.term_inputs import TermInputs
from perceptual_mae.schedules import Balanced, TrainingProgress, Weight, When, is_active, value_at

Reach = Literal["all", "decoder"]
"""What of the generator a term's gradient reaches."""


@dataclass(frozen=True)
class WeightedTerm:
    """One line of an objective: a term with its options, its weight, the phase in which it is on, and its network.

    network: the key of the loss network whose features the term compares, where it compares features. reach: what its
    gradient reaches, "all" of the generator or the "decoder" alone. reads_discriminator: whether it needs one.
    """

    term: Term
    weight: Weight = 1.0
    when: When = "always"
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = LIVE
    reach: Reach = "all"
    reads_discriminator: bool = False

    def __call__(self, inputs: TermInputs) -> Tensor:
        """Return the unweighted loss (a scalar) of what the term reads."""
        fields = [
            inputs.features(name, self.network) if name in FEATURES else getattr(inputs, name)
            for name in self.term.reads
        ]
        return self.term.function(*fields, **self.options)

    @property
    def reads(self) -> set[str]:
        """What the term reads; features count where they are the discriminator's own."""
        own = {name for name in self.term.reads if self.network == LIVE or name not in FEATURES}
        return own - self.term.unread(self.options)


@dataclass(frozen=True)
class Losses:
    """The total of one step and its parts by name, before and after weighting (scalars, attached to the graph).

    for_encoder: the part of the total whose gradient reaches the encoder, where that is not all of it.
    """

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]
    for_encoder: Tensor | None = None


class Objective:
    """The weighted sum of the terms that are on, and the balance of those whose weight follows another gradient."""

    def __init__(self, lines: Mapping[str, WeightedTerm], telemetry_every: int = 50) -> None:
        self.lines = dict(lines)
        balanced = {name: line.weight for name, line in self.lines.items() if isinstance(line.weight, Balanced)}
        self.balance = GradientBalance(balanced, telemetry_every)

    def weights(self, progress: TrainingProgress) -> dict[str, float | Tensor]:
        """Return the weights of the terms that are on; those whose number is zero are off and not computed."""
        on = {name: line for name, line in self.lines.items() if is_active(line.when, progress)}
        numbers = {
            name: value_at(line.weight, progress.fraction)
            for name, line in on.items()
            if not isinstance(line.weight, Balanced)
        }
        weights = {
            name: numbers[name] if name in numbers else self.balance.coefficient(name, numbers.get("l1", 0.0))
            for name in on
        }
        return {name: weight for name, weight in weights.items() if numbers.get(name, 1.0)}

    def active(self, progress: TrainingProgress) -> list[str]:
        """Name the terms that are on."""
        return list(self.weights(progress))

    def reads(self, progress: TrainingProgress) -> set[str]:
        """Name what the terms that are on read; features count where they are the discriminator's own."""
        return {field for name in self.weights(progress) for field in self.lines[name].reads}

    def __call__(self, inputs: TermInputs, progress: TrainingProgress) -> Losses:
        raw, weighted = {}, {}
        for name, weight in self.weights(progress).items():
            raw[name] = self.lines[name](inputs)
            weighted[name] = raw[name] * weight
        assert weighted, f"no term is on in epoch {progress.epoch}, step {progress.step}"
        reaching = [value for name, value in weighted.items() if self.lines[name].reach == "all"]
        for_encoder = torch.stack(reaching).sum() if len(reaching) < len(weighted) else None
        return Losses(torch.stack(tuple(weighted.values())).sum(), raw, weighted, for_encoder)

    def measured_losses(self, losses: Losses) -> dict[str, Tensor]:
        """Return the unweighted losses of a step, and the weighted sum that balanced terms are anchored at, if any."""
        if all(weight.anchor != RECONSTRUCTION for weight in self.balance.balanced.values()):
            return losses.raw
        anchor = [value for name, value in losses.weighted.items() if self._is_reconstruction(self.lines[name])]
        return losses.raw | {RECONSTRUCTION: torch.stack(anchor).sum()}

    def conclude(self, progress: TrainingProgress, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Close a step's measurement over all micro-batches and processes; return what is recorded of it, by name.

        `gradient_ratio/TERM`: a balanced term's weighted gradient over its anchor's, where it is balanced; smoothed.
        `gradient/PLACE/TERM`: every weighted term's gradient norm; `gradient_share/PLACE/TERM`: its part of their sum.
        """
        norms = self.balance.finish(reduce_sum)
        if not norms:
            return {}
        before, active = self.weights(progress), self.active(progress)
        self.balance.follow(norms, self.balance.balanced_terms(active, progress.step))
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
        weights = self.weights(progress)
        ratios = {
            name: self.balance.ratio(name, weights.get("l1", 0.0)) for name in self.balance.balanced if name in weights
        }
        return {name: weights[name] / ratio for name, ratio in ratios.items() if ratio is not None}

    @staticmethod
    def _is_reconstruction(line: WeightedTerm) -> bool:
        """Tell whether a term is part of the anchor: it compares images, by no discriminator and at a weight set."""
        is_set = not isinstance(line.weight, Balanced)
        return is_set and not line.reads_discriminator and line.term.acts_through_decoder
