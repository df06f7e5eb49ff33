"""A fourth discriminator, as somebody would write it beside the three of the table."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.contract import DiscriminatorOutput, check_pyramid


class Tiny(nn.Module):
    """A convolution a level, joined to the halved map of the level before; one logit an image."""

    def __init__(self, resolutions: Sequence[tuple[int, int]], channels: int, *, width: int = 8) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"tiny needs a width of at least 1, not {width}")
        self.resolutions, self.channels, self.levels = tuple(resolutions), channels, len(resolutions)
        self.stages = nn.ModuleList(
            nn.Conv2d(channels + (width if level else 0), width, 3, padding=1) for level in range(self.levels)
        )
        self.head = nn.Linear(width * resolutions[-1][0] * resolutions[-1][1], 1)

    def forward(self, pyramid: Sequence[Tensor]) -> DiscriminatorOutput:
        """Return raw logits (B, 1) and a map (B, width, H, W) a level; levels: (B, C, H, W) in [0, 1]."""
        check_pyramid("tiny", pyramid, self.resolutions, self.channels, self.levels)
        features: list[Tensor] = []
        for images, stage in zip(pyramid, self.stages, strict=True):
            inputs = [images * 2 - 1, *(F.avg_pool2d(hidden, 2) for hidden in features[-1:])]
            features.append(F.leaky_relu(stage(torch.cat(inputs, dim=1)), 0.2))
        return DiscriminatorOutput(self.head(features[-1].flatten(1)), tuple(features))
