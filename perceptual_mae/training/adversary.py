"""The discriminator of a run with all that belongs to it: optimiser, loss, augmentation, penalties."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from discriminators import Augmentation
from discriminators.penalties import R1, R2, LeCam, PathLength
from perceptual_mae.images import Size
from perceptual_mae.losses.adversarial import AdversarialLoss
from perceptual_mae.objective.discriminator_input import DiscriminatorInput, ShownParts


@dataclass(frozen=True)
class Adversary:
    """A discriminator with its optimiser and its loss.

    loss: of (real logits, fake logits, mask, grid); kind: what it is made of, which tells real from fake; by_position:
    whether reconstructions count by their hidden positions alone. input: what it is shown of them. `augmentation` is
    applied to that; `r1`, `r2` and `lecam` join the loss, `path_length` the generator's. start: share of the run's
    steps before the first in which it learns. every: steps from one of its updates to the next; penalties of its loss
    count these. shown_parts: draws the part of a batch that it is shown, None for all. seed: that of the augmentation's
    draws and of the path length's noise.
    """

    network: nn.Module
    optimizer: Optimizer
    learning_rate: Callable[[int], float]
    loss: Callable[[Tensor, Tensor, Tensor, Size], Tensor]
    kind: AdversarialLoss
    input: DiscriminatorInput
    augmentation: Augmentation | None = None
    r1: R1 | None = None
    r2: R2 | None = None
    lecam: LeCam | None = None
    path_length: PathLength | None = None
    by_position: bool = False
    start: float = 0.0
    every: int = 1
    shown_parts: ShownParts | None = None
    seed: int = 0

    def due(self, step: int) -> list[str]:
        """Name what the discriminator's own half does in a step, counted from 0, besides its loss: "r1", "r2"."""
        if step % self.every:
            return []
        penalties = {"r1": self.r1, "r2": self.r2}
        return [name for name, each in penalties.items() if each is not None and each.is_due(step // self.every)]
