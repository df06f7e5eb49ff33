"""The discriminator's side of a run: the network, how it learns, and what its eyes go through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from discriminators.augmentation.ada import ADA
from discriminators.penalties import R1, PathLength
from perceptual_mae.images import Pyramid
from perceptual_mae.seeding import stream

Look = Callable[[Sequence[Tensor]], Pyramid]


@dataclass(frozen=True)
class Adversary:
    """A discriminator with its optimiser and its loss (real logits, fake logits); `center` is its decision level.

    `augmentation` comes before its eyes, `r1` joins its loss, `path_length` the generator's. `seed` keys what the
    augmentation and the path length's noise draw.
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

    def look(self, purpose: str, indices: Tensor, step: int) -> Look:
        """Return what images go through before the discriminator sees them: one draw an image, for all its levels.

        The draws are functions of (seed, step, sample index) and of the purpose: looks of one purpose are paired.
        """
        augmentation = self.augmentation
        if augmentation is None:
            return tuple
        draws = augmentation.draw([stream(f"ada {purpose}", self.seed, step, index) for index in indices.tolist()])
        return lambda pyramid: augmentation.apply(draws, pyramid)
