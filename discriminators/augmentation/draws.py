"""Random draws of adaptive augmentation, made before any image is changed (Training GANs with Limited Data).

A draw is data in units of the image's side, so one draw serves every level of a pyramid, real and fake alike. The
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
"""The groups of operations of each pipeline; they always act in this order."""

BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
"""Share of an ordinary image's power in each frequency band, the lowest first."""

_COLUMNS = 42


@dataclass(frozen=True)
class Draws:
    """Operations on B images, in the order they act; tensors (B,) unless stated otherwise, on the CPU.

    Lengths are fractions of a side (x of the width, y of the height), angles are radians counterclockwise, strengths
    are for pixels in [-1, 1]. An operation that does not act on an image has its neutral value.
    """

    flip: Tensor
    """bool: mirrored left to right."""
    rotate90: Tensor
    """int64, 0 to 3 quarter turns."""
    shift: Tensor
    """(B, 2) x and y, rounded to whole pixels of the largest level when it is applied."""
    scale: Tensor
    rotate_pre: Tensor
    anisotropy: Tensor
    """Factor along x; y is divided by it."""
    rotate_post: Tensor
    translate_fraction: Tensor
    """(B, 2) x and y, not rounded."""
    brightness: Tensor
    contrast: Tensor
    luma_flip: Tensor
    """bool: dark and bright are exchanged, hues kept."""
    hue: Tensor
    saturation: Tensor
    band_gains: Tensor
    """(B, 4) factors of the octaves, lowest first; together they keep the power of an ordinary image."""
    noise: Tensor
    """Standard deviation."""
    noise_seed: Tensor
    """int64: the seed of the noise field, which is drawn when it is applied."""
    cutout_size: Tensor
    cutout_center: Tensor
    """(B, 2) x and y, from the top left corner."""

    def __len__(self) -> int:
        return len(self.flip)

    @property
    def moves(self) -> Tensor:
        """Return which images (B,) have their geometry changed."""
        translated = torch.cat([self.shift, self.translate_fraction], dim=1).ne(0).any(dim=1)
        rotated = (self.rotate90 != 0) | (self.rotate_pre != 0) | (self.rotate_post != 0)
        return self.flip | translated | rotated | (self.scale != 1) | (self.anisotropy != 1)

    @property
    def recolors(self) -> Tensor:
        """Return which images (B,) have their colours changed."""
        factors = (self.contrast != 1) | (self.saturation != 1)
        return (self.brightness != 0) | factors | self.luma_flip | (self.hue != 0)

    @property
    def filters(self) -> Tensor:
        """Return which images (B,) have their frequency bands scaled."""
        return self.band_gains.ne(1).any(dim=1)


def draw(generators: Sequence[torch.Generator], p: float, pipeline: str = "bgc") -> Draws:
    """Return the operations on len(generators) images: each operation of the pipeline acts with probability p.

    Image i draws from generators[i] (on the CPU) alone, always the same count of numbers. Both rotations act with
    1 - sqrt(1 - p), so that p is the chance of any. Strengths are those of the paper's appendix B.
    """
    numbers = [torch.rand(_COLUMNS, dtype=torch.float64, generator=generator) for generator in generators]
    columns = _Columns(torch.stack(numbers), p, PIPELINES[pipeline])
    uniform, normal, when = columns.uniform, columns.normal, columns.when
    rotation_p = 1 - math.sqrt(1 - p)
    draws = Draws(
        flip=when("blit", uniform(0, 2).floor(), 0).bool(),
        rotate90=when("blit", uniform(0, 4).floor(), 0).long(),
        shift=when("blit", columns.pair(uniform, -0.125, 0.125), 0),
        scale=when("geom", normal(0.2).exp2(), 1),
        rotate_pre=when("geom", uniform(-math.pi, math.pi), 0, rotation_p),
        anisotropy=when("geom", normal(0.2).exp2(), 1),
        rotate_post=when("geom", uniform(-math.pi, math.pi), 0, rotation_p),
        translate_fraction=when("geom", columns.pair(normal, 0.125), 0),
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
        """Return uniform numbers (B,) in [low, high)."""
        return low + (high - low) * next(self._columns)

    def normal(self, std: float) -> Tensor:
        """Return normal numbers (B,) of mean 0."""
        # The bound keeps a draw of exactly 0 finite (8 standard deviations).
        standard: Tensor = torch.special.ndtri(next(self._columns).clamp_min(1e-15))
        return std * standard

    def pair(self, kind: Callable[..., Tensor], *parameters: float) -> Tensor:
        """Return two columns of a kind, (B, 2)."""
        return torch.stack([kind(*parameters), kind(*parameters)], dim=1)

    def when(self, group: str, value: Tensor, neutral: float, p: float | None = None) -> Tensor:
        """Return `value` (B, ...) for images on which the operation acts, `neutral` for the others."""
        acts = (next(self._columns) < (self._p if p is None else p)) & (group in self._groups)
        drawn: Tensor = torch.where(acts.view(-1, *[1] * (value.ndim - 1)), value, neutral)
        return drawn

    def finish(self) -> None:
        assert next(self._columns, None) is None, "the table of numbers is wider than what was drawn from it"


def _joint_gains(factors: Sequence[Tensor]) -> Tensor:
    """Return the gains (B, 4) of all bands, from factors (B,) of each band; the power is restored after each."""
    gains = torch.ones(len(factors[0]), len(BAND_POWER), dtype=torch.float64)
    for band, (factor, share) in enumerate(zip(factors, BAND_POWER, strict=True)):
        gains[:, band] *= factor
        gains /= (1 + share * (factor.square() - 1)).sqrt()[:, None]
    return gains
