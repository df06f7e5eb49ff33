"""What every discriminator promises."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class DiscriminatorOutput(NamedTuple):
    """What a discriminator says and what it saw."""

    logits: Tensor
    """(B, ...), raw: high for real, low for fake, never squashed."""
    features: tuple[Tensor, ...]
    """(B, C_j, H_j, W_j), shallow to deep."""


@runtime_checkable
class Discriminator(Protocol):
    """A module built as `Kind(resolutions, channels, *, options)`.

    resolutions: the sizes (H, W) of a pyramid, largest first. Images are (B, channels, H, W) in [0, 1]; the
    discriminator maps them to [-1, 1] itself. It has no BatchNorm, whose statistics real and fake images would share.
    """

    levels: int
    """How many levels of the pyramid it reads, from the largest."""

    def forward(self, pyramid: Sequence[Tensor]) -> DiscriminatorOutput:
        """Return logits and features of the images; ValueError for images of another size than it was built for."""
        ...
