"""Which blocks of an encoder hand feature maps over to a dense head. Blocks are numbered from 1."""

from dataclasses import dataclass
from typing import Literal

from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder

COUNT = 4


@dataclass(frozen=True)
class Taps:
    """Blocks whose outputs are handed over, in their order, and why these.

    source: "skips" of an MSG-MAE, the "standard" ones, the "stages" of a network that is no plain transformer, or
    "chosen" by the recipe.
    has_norms: each map gets a LayerNorm of its own, for nothing in pre-training has set their scales equal.
    """

    blocks: tuple[int, ...]
    source: Literal["skips", "standard", "stages", "chosen"]
    has_norms: bool = False


def standard_taps(depth: int) -> tuple[int, ...]:
    """Return four blocks: 4, 6, 8 and 12 of 12 (BEiT, MAE on ADE20K), at the same shares of other depths."""
    return tuple(max(1, round(depth * share / 12)) for share in (4, 6, 8, 12))


def quarter_taps(depth: int) -> tuple[int, ...]:
    """Return four blocks: K/4, K/2, 3K/4 and K of K (Li et al. 2021)."""
    return tuple(max(1, round(depth * quarter / COUNT)) for quarter in range(1, COUNT + 1))


def skip_taps(tapped: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Return four blocks, evenly over those that skips feed into the decoder and the last (Perceptual MAE section 3.3).

    The last block is the decoder's input. Where fewer blocks are tapped, some are handed over twice.
    """
    blocks = sorted({*tapped, depth})
    return tuple(blocks[round(place * (len(blocks) - 1) / (COUNT - 1))] for place in range(COUNT))


def taps_of(generator: MaskedAutoencoder) -> Taps:
    """Return what a generator's encoder hands over: the maps that its skips used, else the standard ones."""
    depth, tapped = len(generator.encoder.blocks), generator.decoder.taps
    if tapped:
        return Taps(skip_taps(tapped, depth), "skips", has_norms=True)
    return Taps(standard_taps(depth), "standard")
