"""The generator's objective: weights x terms x phases (Perceptual MAE eq. 6).

The table TERMS reads as the equation does. A term is a pure function of what its line says it reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.balance import Balance
from perceptual_mae.comparison import Comparison
from perceptual_mae.losses.adversarial import adversarial_generator
from perceptual_mae.losses.ms_ssim import ms_ssim
from perceptual_mae.losses.perceptual import feature_matching, style
from perceptual_mae.losses.pixel import l1, mse
from perceptual_mae.schedule import Balanced, Moment, Weight, When, is_active, value_at


@dataclass(frozen=True)
class Term:
    """A loss function and the fields of a Comparison it is called with, in order."""

    function: Callable[..., Tensor]
    reads: tuple[str, ...]

    @property
    def needs_discriminator(self) -> bool:
        return any(name.endswith(("features", "logits")) for name in self.reads)

    @property
    def compares_images(self) -> bool:
        """Whether the term looks at images (or what a network sees in them), not only at normalised predictions."""
        return not set(self.reads) <= {"prediction", "target", "mask", "grid"}


TERMS: dict[str, Term] = {
    "l1": Term(l1, reads=("prediction", "target", "mask", "grid")),
    "mse": Term(mse, reads=("prediction", "target", "mask", "grid")),
    "ms_ssim": Term(ms_ssim, reads=("fake", "real")),
    "feature_matching": Term(feature_matching, reads=("fake_features", "real_features")),
    "style": Term(style, reads=("fake_features", "real_features")),
    "adversarial": Term(adversarial_generator, reads=("fake_logits",)),
}


@dataclass(frozen=True)
class WeightedTerm:
    """One line of an objective: a term with its options, its weight and the phase in which it is on."""

    term: Term
    weight: Weight = 1.0
    when: When = "always"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Losses:
    """The total of one step and its parts by name, before and after weighting (scalars, attached to the graph)."""

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]


class Objective:
    """The weighted sum of the terms that are on, and the balance of those whose weight follows L1's gradient."""

    def __init__(self, lines: Mapping[str, WeightedTerm]) -> None:
        self.lines = dict(lines)
        self.balance = Balance()
        # The anchor, the two terms that are known to drown it, and whatever follows it.
        balanced = {name for name, line in self.lines.items() if isinstance(line.weight, Balanced)}
        self.measured = [name for name in self.lines if name in {"l1", "adversarial", "style"} | balanced]

    def is_measured(self, step: int) -> bool:
        """Tell whether gradients are compared in this step; with a single term there is nothing to compare."""
        return "l1" in self.measured and len(self.measured) > 1 and self.balance.is_due(step)

    def active(self, moment: Moment) -> list[str]:
        """Name the terms that are on at this moment; those whose weight is zero are not computed."""
        return [
            name
            for name, line in self.lines.items()
            if is_active(line.when, moment)
            and (isinstance(line.weight, Balanced) or value_at(line.weight, moment.progress))
        ]

    def __call__(self, seen: Comparison, moment: Moment) -> Losses:
        raw, weighted = {}, {}
        for name in self.active(moment):
            line = self.lines[name]
            raw[name] = line.term.function(*(getattr(seen, read) for read in line.term.reads), **line.options)
            weighted[name] = raw[name] * self._weight(name, moment)
        assert weighted, f"no term is on in epoch {moment.epoch}, step {moment.step}"
        return Losses(torch.stack(tuple(weighted.values())).sum(), raw, weighted)

    def measure(self, losses: Losses, seen: Comparison) -> None:
        """Add the gradients of the measured terms at the decoder's input to the current measurement of the balance."""
        self.balance.add({name: losses.raw[name] for name in self.measured if name in losses.raw}, seen.latent)

    def shares(self, moment: Moment) -> dict[str, Tensor]:
        """Return each measured, active term's weighted gradient norm at the decoder's input, relative to L1's."""
        anchor = self.balance.norms.get("l1")
        if anchor is None or "l1" not in self.lines:
            return {}
        reference = anchor * self._weight("l1", moment)
        names = [name for name in self.active(moment) if name in self.balance.norms and name != "l1"]
        return {name: self.balance.norms[name] * self._weight(name, moment) / reference for name in names}

    def _weight(self, name: str, moment: Moment) -> float | Tensor:
        weight = self.lines[name].weight
        if isinstance(weight, Balanced):
            return self.balance.coefficient(name, weight.balanced, weight.cap)
        return value_at(weight, moment.progress)
