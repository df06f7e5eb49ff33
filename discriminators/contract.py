"""The protocols of discriminators and of augmentations, and checks of a discriminator's images."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from discriminators.augmentation.controller import Controller


class DiscriminatorOutput(NamedTuple):
    """A discriminator's logits and the features they came from."""

    logits: Tensor
    """(B, ...), raw: high for real, low for fake, without sigmoid."""
    features: tuple[Tensor, ...]
    """(B, C_j, H_j, W_j), shallow to deep."""

    @property
    def image_logits(self) -> Tensor:
        """One number an image (B,): the mean of its logits, whatever map they are."""
        return self.logits.flatten(1).mean(1)

    def detach(self) -> "DiscriminatorOutput":
        """Return the same values without their graph."""
        return DiscriminatorOutput(self.logits.detach(), tuple(feature.detach() for feature in self.features))


@runtime_checkable
class Discriminator(Protocol):
    """A module built as `Kind(resolutions, channels, *, options)`.

    resolutions: the sizes (H, W) of a pyramid, largest first. Images are (B, channels, H, W) in [0, 1]; the
    discriminator maps them to [-1, 1] itself. It has no BatchNorm, whose statistics real and fake images would share.
    """

    levels: int
    """Number of levels of the pyramid that it reads, from the largest."""

    def forward(self, pyramid: Sequence[Tensor]) -> DiscriminatorOutput:
        """Return logits and features of the images; ValueError for images of another size than it was built for."""
        ...


@runtime_checkable
class Augmentation(Protocol):
    """A class built as `Kind(resolutions, channels, *, options)`: what images go through before the discriminator.

    The same draws act alike on every level of a pyramid, and on real and fake. The draws of an image depend on its own
    generator alone, results are never clamped, and can be differentiated twice.
    """

    @property
    def controller(self) -> Controller | None:
        """What measures the discriminator's real logits, and may set the strength; None where nothing is measured."""
        ...

    def draw(self, generators: Sequence[torch.Generator]) -> Any:
        """Return the operations on len(generators) images, image i from generators[i] alone; `len` counts images."""
        ...

    def apply(self, draws: Any, pyramid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the augmented levels (B, C, H_s, W_s) of a pyramid of images in [0, 1], in the dtype given."""
        ...

    def follow(self, fraction: float) -> None:
        """Set what is scheduled for a step; `fraction` is the share of the run's steps already taken."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs, the same on every process."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def check_resolutions(name: str, resolutions: Sequence[tuple[int, int]], smallest: int) -> None:
    """Raise ValueError unless there are two sizes or more, each half the one before, no side below `smallest`."""
    for (height, width), (low_height, low_width) in pairwise(resolutions):
        if (height, width) != (2 * low_height, 2 * low_width):
            raise ValueError(
                f"{name} needs a pyramid whose levels halve exactly, but {low_height}x{low_width} follows "
                f"{height}x{width}; use a size such as 32, 64, 96 or 224"
            )
    if len(resolutions) < 2 or min(resolutions[-1]) < smallest:
        sizes = ", ".join(f"{height}x{width}" for height, width in resolutions)
        raise ValueError(f"{name} needs two levels or more, none below {smallest} pixels a side, not ({sizes})")


def check_pyramid(
    name: str, pyramid: Sequence[Tensor], resolutions: Sequence[tuple[int, int]], channels: int, levels: int
) -> None:
    """Raise ValueError unless `pyramid` has at least the levels that are read, and each has the size it was built for.

    Further levels, as far as `resolutions` go, are allowed and not read. Levels are (B, channels, H, W).
    """
    shapes = [(channels, *size) for size in resolutions]
    got = [tuple(level.shape) for level in pyramid]
    sound = all(len(level) == 4 and level[1:] == shape for level, shape in zip(got, shapes[:levels], strict=False))
    if not sound or not levels <= len(got) <= len(shapes) or len({level[0] for level in got[:levels]}) != 1:
        expected = ", ".join(f"(B, {', '.join(map(str, shape))})" for shape in shapes[:levels])
        raise ValueError(
            f"{name} was built for {levels} level(s) {expected}, but got {', '.join(map(str, got)) or 'none'}"
        )
