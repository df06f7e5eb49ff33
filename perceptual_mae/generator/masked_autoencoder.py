"""The generator: a masked autoencoder, with encoder-decoder skips and RGB heads as independent options.

Neither is MAE, both are MSG-MAE, heads alone an ablation of the Perceptual MAE paper.
Shapes: B images, C channels, L patches, d decoder width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from perceptual_mae.generator.decoder import Decoder, DecoderAttention
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.generator.rgb_heads import HeadForm, RgbHead
from perceptual_mae.generator.sizes import SIZES
from perceptual_mae.generator.skips import SkipMap, tapped_blocks
from perceptual_mae.generator.vit import Positions
from perceptual_mae.images import Pyramid, Size, patchify, pyramid, resolutions, unpatchify
from perceptual_mae.masking import visible_patches

__all__ = ["SIZES", "MaskedAutoencoder", "Reconstruction", "count_parameters"]


class MaskedAutoencoder(nn.Module):
    """Masked autoencoder for images in [0, 1] of one size; `None` stands for the value of the chosen size.

    skips: encoder blocks feed decoder blocks (`skip_map`, `skip_projection`). rgb_heads: a pyramid instead of one image
    (`head_form`). norm_pix: predict patches normalised by their own mean and deviation (MAE). drop_path: the rate of
    stochastic depth in the last encoder block; whoever trains draws `drop_path_masks` by it. Of both halves: qkv_bias,
    layer_scale (see `Block`), positions. Of the encoder: relative_positions (see `Pairs`); encoder_mask_tokens: it sees
    a token in place of each hidden patch. decoder_attention: all tokens of the decoder look at each other (MAE), or
    each at the visible ones alone (CrossMAE). Raises ValueError for options that do not fit each other or the images.
    """

    mask_token: nn.Parameter | None

    def __init__(
        self,
        image_size: Size,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        size: Literal["tiny", "small", "base", "large", "huge"] = "base",
        patch_size: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        decoder_width: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        mlp_ratio: float = 4.0,
        skips: bool = False,
        rgb_heads: bool = False,
        skip_map: SkipMap = "auto",
        skip_projection: Literal["per_skip", "shared"] = "per_skip",
        head_form: HeadForm = "native",
        norm_pix: bool = False,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        positions: Positions = "sincos",
        relative_positions: bool = False,
        encoder_mask_tokens: bool = False,
        decoder_attention: DecoderAttention = "self",
    ) -> None:
        super().__init__()
        given = {
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "decoder_width": decoder_width,
            "decoder_depth": decoder_depth,
            "decoder_heads": decoder_heads,
        }
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}; choose from: {', '.join(SIZES)}")
        changes = {name: value for name, value in given.items() if value is not None}
        chosen = replace(SIZES[size], mlp_ratio=mlp_ratio, **changes)
        if norm_pix and rgb_heads:
            raise ValueError("norm_pix predicts normalised patches, not images for rgb_heads; switch one of them off")
        if norm_pix and chosen.patch_size**2 * channels == 1:
            raise ValueError("norm_pix needs patches of more than one value; set generator.patch_size above 1")
        if layer_scale is not None and layer_scale <= 0:
            raise ValueError(f"generator.layer_scale must be above 0, got {layer_scale:g}; null switches it off")
        if not 0 <= drop_path < 1:
            raise ValueError(f"generator.drop_path must be at least 0 and below 1, got {drop_path:g}")
        self.image_size, self.channels, self.norm_pix, self.drop_path = image_size, channels, norm_pix, drop_path
        self.patch_size = _fitting_patch_size(image_size, chosen.patch_size)
        self.resolutions = resolutions(image_size) if rgb_heads else (image_size,)
        """Sizes of the images it writes, largest first."""
        self.encoder = Encoder(
            image_size,
            channels,
            mean,
            std,
            patch_size=chosen.patch_size,
            width=chosen.width,
            depth=chosen.depth,
            heads=chosen.heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            layer_scale=layer_scale,
            positions=positions,
            relative_positions=relative_positions,
        )
        self.grid = self.encoder.grid
        self.decoder = Decoder(
            chosen.width,
            channels,
            self.grid,
            patch_size=chosen.patch_size,
            width=chosen.decoder_width,
            depth=chosen.decoder_depth,
            heads=chosen.decoder_heads,
            mlp_ratio=mlp_ratio,
            taps=tapped_blocks(chosen.depth, chosen.decoder_depth, skip_map) if skips else (),
            own_projections=skip_projection == "per_skip",
            levels=len(self.resolutions),
            head_form=head_form,
            qkv_bias=qkv_bias,
            layer_scale=layer_scale,
            positions=positions,
            mask_token=not encoder_mask_tokens,
            attention=decoder_attention,
        )
        # It is not the encoder's own, which would then carry a weight that whole images never need.
        token = nn.Parameter(0.02 * torch.randn(1, 1, chosen.width)) if encoder_mask_tokens else None
        self.register_parameter("mask_token", token)
        self._native_heads = head_form == "native"

    def forward(self, images: Tensor, mask: Tensor, drop_path_masks: Tensor | None = None) -> Reconstruction:
        """The reconstruction of images (B, C, H, W) in [0, 1] from the patches that the mask (B, L) leaves visible.

        The mask, and the encoder's `drop_path_masks` (B, blocks, 2), may be on the CPU while the images are elsewhere:
        then the host never waits for the device.
        """
        self._check(images, mask)
        visible = visible_patches(mask).to(images.device, non_blocking=True)
        mask = mask.to(images.device, non_blocking=True)
        drop_path_masks = None if drop_path_masks is None else drop_path_masks.to(images.device, non_blocking=True)
        if self.mask_token is None:
            tokens, tapped = self.encoder.encode(images, visible, self.decoder.taps, drop_path_masks=drop_path_masks)
        else:
            replaced = (mask, self.mask_token)
            tokens, tapped = self.encoder.encode(
                images, None, self.decoder.taps, drop_path_masks=drop_path_masks, replaced=replaced
            )
            visible = torch.arange(mask.shape[1], device=images.device).expand(len(images), -1)
        prediction, latent = self.decoder(tokens, tapped, visible)
        return Reconstruction(
            pyramid=self.to_images(prediction, images),
            prediction=prediction,
            mask=mask,
            tokens=tokens,
            latent=latent,
            grid=self.grid,
            uses_target_statistics=self.norm_pix,
        )

    def target(self, images: Tensor, levels: int = 1) -> Pyramid:
        """The pixel losses' goal for `Reconstruction.prediction`: images (B, C, H, W) in [0, 1], normalised and pooled.

        Under norm_pix each patch has mean 0 and deviation 1 over its pixels and channels, and there is one level.
        """
        normalised = self.encoder.normalise(images)
        if not self.norm_pix:
            return pyramid(normalised, levels)
        if levels != 1:
            raise ValueError(
                f"under norm_pix the target has 1 level, not {levels}: normalised patches cannot be pooled"
            )
        mean, deviation = self._patch_statistics(images)
        patches = (patchify(normalised, self.patch_size) - mean) / deviation
        return (unpatchify(patches, self.patch_size, self.grid),)

    def to_images(self, prediction: Pyramid, images: Tensor) -> Pyramid:
        """Images on the [0, 1] scale, not clamped, of a prediction; norm_pix borrows the true patches' statistics."""
        if self.norm_pix:
            mean, deviation = self._patch_statistics(images)
            patches = patchify(prediction[0], self.patch_size) * deviation + mean
            prediction = (unpatchify(patches, self.patch_size, self.grid),)
        return tuple(self.encoder.denormalise(level) for level in prediction)

    @property
    def fallback_heads(self) -> tuple[Size, ...]:
        """Sizes whose RGB head took the full form though `native` was asked: the patch size does not divide there."""
        heads = zip(self.resolutions[1:], self.decoder.heads, strict=True)
        return tuple(size for size, head in heads if isinstance(head, RgbHead) and head.is_full and self._native_heads)

    def _patch_statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, L, 1) of each normalised patch over all its values, without gradient (MAE)."""
        patches = patchify(self.encoder.normalise(images.detach()), self.patch_size)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    def _check(self, images: Tensor, mask: Tensor) -> None:
        if images.shape[1:] != (self.channels, *self.image_size) or not images.is_floating_point():
            raise ValueError(
                f"expected float images (B, {self.channels}, {self.image_size[0]}, {self.image_size[1]}) in [0, 1], "
                f"got {images.dtype} {tuple(images.shape)}; build the generator for this size or resize the images"
            )
        if mask.dtype != torch.bool or mask.shape != (len(images), self.grid[0] * self.grid[1]):
            raise ValueError(
                f"expected a bool mask ({len(images)}, {self.grid[0] * self.grid[1]}), True = hidden, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Number of trainable parameters, and the same with the fixed position codes that other projects count too."""
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    positions = sum(buffer.numel() for name, buffer in module.named_buffers() if name.split(".")[-1] == "pos_embed")
    return trainable, trainable + positions


def _fitting_patch_size(image_size: Size, patch_size: int) -> int:
    if image_size[0] % patch_size or image_size[1] % patch_size:
        height, width = (max(1, side // patch_size) * patch_size for side in image_size)
        raise ValueError(
            f"image size {image_size[0]}x{image_size[1]} is not a multiple of patch_size {patch_size}; "
            f"use {height}x{width} or set generator.patch_size"
        )
    return patch_size
