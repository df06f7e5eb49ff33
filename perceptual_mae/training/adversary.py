"""The discriminator of a run with all that belongs to it: optimiser, loss, augmentation, penalties."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from discriminators.augmentation.ada import ADA
from discriminators.penalties import R1, PathLength


@dataclass(frozen=True)
class Adversary:
    """A discriminator with its optimiser and its loss (real logits, fake logits); `center` is its decision level.

    `augmentation` is applied to the images it is shown, `r1` joins its loss, `path_length` the generator's. `seed` is
    that of the augmentation's draws and of the path length's noise.
    """

    network: nn.Module
    optimizer: Optimizer
    learning_rate: Callable[[int], float]
    loss: Callable[[Tensor, Tensor], Tensor]
    center: float
    augmentation: ADA | None = None
    r1: R1 | None = None
    path_length: PathLength | None = None
    seed: int = 0
