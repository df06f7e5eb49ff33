"""What adaptive augmentation does to each image, drawn before any image is touched (Training GANs with Limited Data).

A draw is pure data in units of the image's side, so one draw serves every level of a pyramid, real and fake alike. The
numbers of an image come from its own generator, in an order that neither the pipeline nor p changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PIPELINES: dict[str, tuple[str, ...]] = {
    "blit": ("blit",),
    "geom": ("geom",),
    "color": ("color",),
    "filter": ("filter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": ("blit", "geom"),
    "bgc": ("blit", "geom", "color"),
    "bgcf": ("blit", "geom", "color", "filter"),
    "bgcfn": ("blit", "geom", "color", "filter", "noise"),
    "bgcfnc": ("blit", "geom", "color", "filter", "noise", "cutout"),
}
"""The groups of operations a pipeline is made of; they always act in this order."""

BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
"""Share of an ordinary image's power in each frequency band, the lowest first."""

_COLUMNS = 42


@dataclass(frozen=True)
class Draws:
    """Operations on B images, in the order they act; (B,) unless it says otherwise, on the CPU.

    Lengths are shares of a side (x of the width, y of the height), angles are radians counterclockwise, and strengths
    are those of pixels in [-1, 1]. What an image is spared has its neutral value.
    """

    flip: Tensor
    """bool: left and right change places."""
    quarter_turns: Tensor
    """int64, 0 to 3."""
    shift: Tensor
    """(B, 2) x and y, rounded to whole pixels of the largest level when it is applied."""
    zoom: Tensor
    turn_before: Tensor
    stretch: Tensor
    """Factor along x; y is divided by it."""
    turn_after: Tensor
    slide: Tensor
    """(B, 2) x and y, not rounded."""
    brightness: Tensor
    contrast: Tensor
    luma_flip: Tensor
    """bool: dark and bright change places, hues stay."""
    hue: Tensor
    saturation: Tensor
    band_gains: Tensor
    """(B, 4) factors of the octaves, lowest first; together they keep an ordinary image's power."""
    noise: Tensor
    """Standard deviation."""
    noise_seed: Tensor
    """int64: the field of noise is drawn from it when it is applied."""
    cutout_size: Tensor
    cutout_center: Tensor
    """(B, 2) x and y, from the top left corner."""

    def __len__(self) -> int:
        return len(self.flip)

    @property
    def moves(self) -> Tensor:
        """Return which images (B,) have their geometry changed."""
        offsets = torch.cat([self.shift, self.slide], dim=1).ne(0).any(dim=1)
        turns = (self.quarter_turns != 0) | (self.turn_before != 0) | (self.turn_after != 0)
        return self.flip | offsets | turns | (self.zoom != 1) | (self.stretch != 1)

    @property
    def recolors(self) -> Tensor:
        """Return which images (B,) have their colours changed."""
        factors = (self.contrast != 1) | (self.saturation != 1)
        return (self.brightness != 0) | factors | self.luma_flip | (self.hue != 0)

    @property
    def filters(self) -> Tensor:
        """Return which images (B,) have their frequency bands weighted anew."""
        return self.band_gains.ne(1).any(dim=1)


def draw(generators: Sequence[torch.Generator], p: float, pipeline: str = "bgc") -> Draws:
    """Return the operations on len(generators) images: each operation of the pipeline acts with probability p.

    Image i draws from generators[i] (on the CPU) alone, always the same count of numbers. Both rotations act with
    1 - sqrt(1 - p), so that p is the chance of any. Strengths are those of the paper's appendix B.
    """
    numbers = [torch.rand(_COLUMNS, dtype=torch.float64, generator=generator) for generator in generators]
    columns = _Columns(torch.stack(numbers), p, PIPELINES[pipeline])
    uniform, normal, when = columns.uniform, columns.normal, columns.when
    turning = 1 - math.sqrt(1 - p)
    draws = Draws(
        flip=when("blit", uniform(0, 2).floor(), 0).bool(),
        quarter_turns=when("blit", uniform(0, 4).floor(), 0).long(),
        shift=when("blit", columns.pair(uniform, -0.125, 0.125), 0),
        zoom=when("geom", normal(0.2).exp2(), 1),
        turn_before=when("geom", uniform(-math.pi, math.pi), 0, turning),
        stretch=when("geom", normal(0.2).exp2(), 1),
        turn_after=when("geom", uniform(-math.pi, math.pi), 0, turning),
        slide=when("geom", columns.pair(normal, 0.125), 0),
        brightness=when("color", normal(0.2), 0),
        contrast=when("color", normal(0.5).exp2(), 1),
        luma_flip=when("color", uniform(0, 2).floor(), 0).bool(),
        hue=when("color", uniform(-math.pi, math.pi), 0),
        saturation=when("color", normal(1).exp2(), 1),
        band_gains=_joint_gains([when("filter", normal(1).exp2(), 1) for _ in BAND_POWER]),
        noise=when("noise", normal(0.1).abs(), 0),
        noise_seed=(uniform(0, 1) * 2**53).long(),
        cutout_size=when("cutout", torch.full((len(generators),), 0.5, dtype=torch.float64), 0),
        cutout_center=columns.pair(uniform, 0, 1),
    )
    columns.finish()
    return draws


class _Columns:
    """Hands out the columns of a table (B, N) of uniform numbers in [0, 1), each once, from left to right."""

    def __init__(self, table: Tensor, p: float, groups: Sequence[str]) -> None:
        self._columns, self._p, self._groups = iter(table.unbind(dim=1)), p, groups

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * next(self._columns)

    def normal(self, deviation: float) -> Tensor:
        # The bound keeps a draw of exactly 0 finite (8 deviations).
        standard: Tensor = torch.special.ndtri(next(self._columns).clamp_min(1e-15))
        return deviation * standard

    def pair(self, kind: Callable[..., Tensor], *parameters: float) -> Tensor:
        return torch.stack([kind(*parameters), kind(*parameters)], dim=1)

    def when(self, group: str, value: Tensor, otherwise: float, chance: float | None = None) -> Tensor:
        """Return `value` for images on which the operation acts, and the neutral value for the others."""
        acts = (next(self._columns) < (self._p if chance is None else chance)) & (group in self._groups)
        chosen: Tensor = torch.where(acts.view(-1, *[1] * (value.ndim - 1)), value, otherwise)
        return chosen

    def finish(self) -> None:
        assert next(self._columns, None) is None, "the table of numbers is wider than what was drawn from it"


def _joint_gains(factors: Sequence[Tensor]) -> Tensor:
    """Return the gains (B, 4) of all bands when each band in turn is amplified and the power then restored."""
    gains = torch.ones(len(factors[0]), len(BAND_POWER), dtype=torch.float64)
    for band, (factor, share) in enumerate(zip(factors, BAND_POWER, strict=True)):
        gains[:, band] *= factor
        gains /= (1 + share * (factor.square() - 1)).sqrt()[:, None]
    return gains
