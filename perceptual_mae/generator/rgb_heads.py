"""RGB heads, which write the pyramid's lower levels from decoder blocks (Perceptual MAE section 3.3).

Shapes: B images, C channels, L patches, d decoder width, p patch size.
"""

from typing import Literal

import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from perceptual_mae.generator.vit import LayerNorm
from perceptual_mae.images import Size, unpatchify

HeadForm = Literal["native", "full"]


class RgbHead(nn.Module):
    """An image (B, C, H/stride, W/stride) from a block's tokens (B, 1+L, d), in the generator's normalised space.

    `native` writes that size directly: each token a smaller patch, or neighbouring tokens pooled into one pixel. `full`
    writes the whole image and averages it down; it also serves where patch size and stride do not divide each other.
    """

    def __init__(self, width: int, channels: int, grid: Size, patch_size: int, stride: int, form: HeadForm) -> None:
        super().__init__()
        self.grid, self.stride = grid, stride
        divides = patch_size % stride == 0 or stride % patch_size == 0
        self.is_full = form == "full" or not divides
        self.pool = 1 if self.is_full else max(1, stride // patch_size)  # tokens to a pixel, along each side
        self.patch_size = patch_size if self.is_full else max(1, patch_size // stride)
        # A full head is a plain linear map in the paper's code; its norm adds stability and no parameters.
        self.norm = LayerNorm(width, elementwise_affine=not self.is_full)
        self.predict = nn.Linear(width, channels * self.patch_size**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return images (B, C, H/stride, W/stride) of tokens (B, 1+L, d)."""
        rows, columns = (side // self.pool for side in self.grid)
        patches: Tensor = self.norm(tokens)[:, 1:]
        if self.pool > 1:
            patches = reduce(patches, "b (h r w s) d -> b (h w) d", "mean", h=rows, w=columns, r=self.pool, s=self.pool)
        images = unpatchify(self.predict(patches), self.patch_size, (rows, columns))
        return F.avg_pool2d(images, self.stride) if self.is_full else images


def head_block(level: int, depth: int) -> int:
    """Decoder block that writes pyramid level 1, 2, ...: level 1 the last but one, coarser levels earlier ones.

    Shallow decoders (depth < number of levels) write several levels from block 1.
    """
    return max(1, depth - level)
