"""The half of the generator that is kept: a vision transformer that sees visible patches only, or whole images.

Shapes: B images, C channels, L patches, V visible patches, D width.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from perceptual_mae.images import Size, patchify
from perceptual_mae.vit import Block, LayerNorm, PatchEmbed, initialise, resize_positions, sincos_positions


class Encoder(nn.Module):
    """Vision transformer with a class token and fixed positions; parameters carry timm's names.

    Images come in [0, 1]; the data set's mean and standard deviation are buffers, so that a saved encoder is complete.
    """

    mean: Tensor
    std: Tensor
    pos_embed: Tensor

    def __init__(
        self,
        image_size: Size,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if channels < 1 or not len(mean) == len(std) == channels or min(std) <= 0:
            raise ValueError(
                f"images of {channels} channels need {channels} means and {channels} positive standard deviations, "
                f"got mean {list(mean)} and std {list(std)}"
            )
        self.channels, self.patch_size, self.width = channels, patch_size, width
        self.grid: Size = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).view(-1, 1, 1))
        self.register_buffer("pos_embed", sincos_positions(self.grid, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = PatchEmbed(channels, patch_size, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.apply(initialise)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor, paths: Tensor | None = None) -> Tensor:
        """Tokens (B, 1+L, D) after the final norm, class token first, of whole images (B, C, H, W) in [0, 1].

        Any height and width that are multiples of the patch size will do: positions are interpolated. `paths`
        (B, blocks, 2): see `Block`.
        """
        height, width = images.shape[-2:]
        if images.dim() != 4 or images.shape[1] != self.channels or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"expected images (B, {self.channels}, H, W) with H and W multiples of patch_size {self.patch_size}, "
                f"got {tuple(images.shape)}; resize or crop them first"
            )
        return self.encode(images, paths=paths)[0]

    def encode(
        self,
        images: Tensor,
        visible: Tensor | None = None,
        taps: Collection[int] = (),
        *,
        paths: Tensor | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Tokens (B, 1+V, D) after the final norm, and the outputs of the blocks numbered in `taps`, not normalised.

        images: (B, C, H, W) in [0, 1]; visible: indices (B, V) of the only patches to look at, None for all. Blocks are
        numbered from 1; 0 is what enters the first.
        """
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        patches = patchify(self.normalise(images), self.patch_size).to(self.cls_token.dtype)
        positions = resize_positions(self.pos_embed, self.grid, grid)
        patch_positions = positions[:, 1:]
        if visible is not None:
            patches = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[-1]))
            patch_positions = patch_positions[0, visible]
        class_token = (self.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([class_token, self.patch_embed(patches) + patch_positions], dim=1)
        tapped = {0: tokens} if 0 in taps else {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens) if paths is None else block(tokens, paths[:, number - 1])
            if number in taps:
                tapped[number] = tokens
        return self.norm(tokens), tapped

    def class_attention(self, images: Tensor) -> Tensor:
        """What the last block's class token looks at in whole images: (B, heads, 1+L), its own token first, sums of 1.

        All patches are visible; images are those that `forward` takes.
        """
        last, before = self.blocks[-1], len(self.blocks) - 1
        assert isinstance(last, Block)
        _, tapped = self.encode(images, taps=(before,))
        return last.attention(tapped[before])[:, :, 0]

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] shifted and scaled by the data set's mean and standard deviation."""
        return (images - self.mean) / self.std

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`: back to the scale where images lie in [0, 1], not clamped."""
        return images * self.std + self.mean

    def export_state_dict(self) -> dict[str, Tensor]:
        """State under timm's names, the same for every generator: without the data set's mean and deviation."""
        return {name: value for name, value in self.state_dict().items() if name not in ("mean", "std")}
