"""What a line of METRICS promises, and what it may know of the images before the pass begins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.evaluation.accumulators import Accumulator
from perceptual_mae.images import Size

Measure = Callable[[Tensor, Tensor], Tensor]
"""Compares fake and real images, float32 (B, C, H, W) in [0, 1].

Returns one value an image (B,), or a map (B, C, h, w) of values at pixels, centred: where it is smaller than the
images, it lacks a border of the same width on all sides.
"""


class UnavailableError(Exception):
    """A score cannot be had here; the message is the reason, and what to do about it."""


@dataclass(frozen=True)
class Setting:
    """What is known before the pass: sizes of images and patches, channels, the device, how many images, a seed.

    `find_weights` returns the file of a network's weights by its name, or raises UnavailableError with the command
    that fetches it. `features` names the networks through which sets of images are compared (see
    `feature_networks`; empty: Inception). trust_code: whether a file of theirs that is a program may run. `sets` names
    the sets, the last of which, `reference` in words, the others are compared with. mixed_sizes: whether images have
    several sizes, of which `size` has the smallest sides.
    """

    size: Size
    channels: int
    device: torch.device
    num_images: int
    find_weights: Callable[[str], Path]
    patch_size: int
    seed: int = 0
    features: tuple[str, ...] = ()
    trust_code: bool = False
    sets: tuple[str, ...] = ("raw", "composite", "originals")
    reference: str = "the originals of the same images"
    mixed_sizes: bool = False


@dataclass(frozen=True)
class ImageMetric:
    """A score of each image, averaged over images.

    `prepare` loads what it needs and returns the measure; it raises UnavailableError where the images are too small or
    weights are missing. Where the measure is a map, `masked` scores it on the hidden pixels of the composite, too.
    `relative` divides the mean of an image's map by that of the original compared with itself, over the same pixels.
    `from_mean` turns the mean of an image's map, or its value, into its score. `summarise` turns all scores (N,) in
    float64 into what is reported, by key; None is {name: mean}. `versions` names the packages a number depends on.
    """

    prepare: Callable[[Setting], Measure]
    masked: bool = False
    relative: bool = False
    from_mean: Callable[[Tensor], Tensor] | None = None
    summarise: Callable[[str, Tensor], Mapping[str, Any]] | None = None
    versions: tuple[str, ...] = ()
    network: bool = False
    """Whether it looks through a network, which takes time and a file of weights."""


@dataclass(frozen=True)
class SetMetric:
    """A score of the whole set, such as a distance between distributions.

    `prepare(setting, names)` returns the accumulator that computes all `names` among the lines that share this very
    function (so that they share a network), or raises UnavailableError for all of them, before the pass. Where the
    accumulator has a mapping `unavailable`, it says which keys it will not have (fid[inception]), and why.
    """

    prepare: Callable[[Setting, Sequence[str]], Accumulator]
    versions: tuple[str, ...] = ()
    network: bool = True


Metric = ImageMetric | SetMetric
