"""What is drawn for a batch: masks and drop-path factors, functions of (seed, pass over the data, sample index)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.loading import Batch
from perceptual_mae.errors import user_mistakes
from perceptual_mae.generator.drop_path import draw_paths
from perceptual_mae.images import Size
from perceptual_mae.masking import draw_masks, num_hidden
from perceptual_mae.schedules import Moment, value_at
from perceptual_mae.seeding import stream

Look = Callable[[Batch], Tensor]
"""What the encoder's class token looks at in the patches of a batch's whole images, (B, L), without gradient."""


@dataclass(frozen=True)
class TrainingMasks:
    """Draws a training batch's masks: functions of (seed, pass over the data, sample index) and the ratio in force.

    `look` is asked for the encoder's attention where the masking needs it, and never otherwise.
    """

    config: RunConfig
    grid: Size
    look: Look | None = None

    def __call__(self, batch: Batch, moment: Moment) -> Tensor:
        masking, seed = self.config.masking, self.config.training.seed
        hidden = num_hidden(self.grid[0] * self.grid[1], value_at(masking.ratio, moment.progress))
        draw = partial(masking.constructor, **masking.options())
        attention = None
        if masking.watches_attention:
            assert self.look is not None, f"masking {masking.kind} needs an encoder to look through"
            attention = self.look(batch).cpu()
        return user_mistakes(lambda: draw_masks(draw, self.grid, hidden, batch.draws("mask", seed), attention))


@dataclass(frozen=True)
class TrainingPaths:
    """Draws a training batch's paths through the encoder: functions of (seed, pass over the data, sample index).

    None where the rate is 0 and all are open.
    """

    rate: float
    depth: int
    seed: int

    def __call__(self, batch: Batch) -> Tensor | None:
        return draw_paths(self.rate, self.depth, batch.draws("drop path", self.seed)) if self.rate else None


@dataclass(frozen=True)
class FixedMasks:
    """Draws masks for held-out images: functions of (evaluation seed, sample index), the same at every evaluation."""

    config: RunConfig
    grid: Size
    seed: int
    ratio: float

    def __call__(self, batch: Batch) -> Tensor:
        masking = self.config.masking.of_held_out_images
        hidden = num_hidden(self.grid[0] * self.grid[1], self.ratio)
        draws = [stream("evaluation mask", self.seed, index) for index in batch.indices.tolist()]
        return draw_masks(partial(masking.constructor, **masking.options()), self.grid, hidden, draws)
