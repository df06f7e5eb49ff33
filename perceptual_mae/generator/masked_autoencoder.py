"""The generator: a masked autoencoder, with encoder-decoder skips and RGB heads as independent options.

Neither is MAE, both are MSG-MAE, heads alone an ablation of the Perceptual MAE paper.
Shapes: B images, C channels, L patches, d decoder width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from perceptual_mae.generator.decoder import ClassToken, Decoder, DecoderAttention
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.generator.rgb_heads import HeadForm, RgbHead
from perceptual_mae.generator.sizes import SIZES, Depth, Heads, MlpRatio, PatchSize, Width
from perceptual_mae.generator.skips import SkipMap, tapped_blocks
from perceptual_mae.generator.vit import Positions
from perceptual_mae.images import Pyramid, Size, patchify, pyramid, resolutions, unpatchify
from perceptual_mae.masking import visible_patches

__all__ = ["SIZES", "MaskedAutoencoder", "Reconstruction", "count_parameters"]


class MaskedAutoencoder(nn.Module):
    """Masked autoencoder of images in [0, 1] of one size, with the skips and RGB heads of MSG-MAE as options.

    `drop_path` only states a rate: the training loop draws `drop_path_masks` by it.

    Options:
        size: named widths, depths and heads: encoders of ViT, decoders of MAE from base up, ours below [MAE]
        patch_size: side of a patch in pixels; null is that of size, 16 or 14 (huge) [MAE]
        width: channels of encoder tokens, a multiple of 4 and of heads; null is that of size [MAE]
        depth: encoder blocks; null is that of size [MAE]
        heads: attention heads of encoder blocks; null is that of size [MAE]
        decoder_width: channels of decoder tokens, a multiple of 4 and of decoder_heads; null is that of size [MAE]
        decoder_depth: decoder blocks; null is that of size [MAE]
        decoder_heads: attention heads of decoder blocks; null is that of size [MAE]
        mlp_ratio: width of an MLP's hidden layer relative to its block's [MAE]
        decoder_mlp_ratio: that of decoder blocks; null is mlp_ratio [MAE]
        skips: feed encoder blocks into decoder blocks (MSG-MAE) [MAE]
        rgb_heads: write an image for each level of the pyramid, from the last decoder blocks (MSG-MAE) [MAE]
        skip_map: which encoder block feeds which decoder block: "mirror" as in a U-Net, "even" spread over all;
            "auto" is mirror unless that reaches only the encoder's last half [ours]
        skip_projection: linear maps to the decoder's width: one "per_skip", or the main path's, "shared" [ours]
        head_form: RGB heads write their level's size directly ("native"), or the whole image, averaged down
            ("full") [ours]
        norm_pix: predict patches normalised by their own mean and std; excludes losses on images [paper]
        qkv_bias: biases of queries, keys and values, in encoder and decoder [MAE]
        layer_norm_eps: added to variances by all LayerNorms; weights of others may need another [MAE]
        layer_scale: initial factor of LayerScale on both branches of all blocks, above 0; null is off [MAE]
        drop_path: rate of stochastic depth of the last encoder block, in [0, 1); earlier blocks have less [MAE]
        positions: fixed "sincos" codes, or "learned" ones, in encoder and decoder [MAE]
        relative_positions: add a learned relative position bias to the encoder's attention (BEiT) [MAE]
        encoder_mask_tokens: give the encoder a mask token for each hidden patch, and the decoder none [MAE]
        decoder_attention: decoder tokens attend to all tokens ("self"), or to visible ones alone ("cross",
            CrossMAE) [MAE]
        decoder_class_token: the decoder's class token is the "encoder"'s, or one that is the same for all images,
            "constant" (RAE) [MAE]

    Raises ValueError for options that do not fit each other or the images.
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
        patch_size: PatchSize | None = None,
        width: Width | None = None,
        depth: Depth | None = None,
        heads: Heads | None = None,
        decoder_width: Width | None = None,
        decoder_depth: Depth | None = None,
        decoder_heads: Heads | None = None,
        mlp_ratio: MlpRatio = 4.0,
        decoder_mlp_ratio: MlpRatio | None = None,
        skips: bool = False,
        rgb_heads: bool = False,
        skip_map: SkipMap = "auto",
        skip_projection: Literal["per_skip", "shared"] = "per_skip",
        head_form: HeadForm = "native",
        norm_pix: bool = False,
        qkv_bias: bool = True,
        layer_norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        positions: Positions = "sincos",
        relative_positions: bool = False,
        encoder_mask_tokens: bool = False,
        decoder_attention: DecoderAttention = "self",
        decoder_class_token: ClassToken = "encoder",
    ) -> None:
        super().__init__()
        overrides = {
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
        changes = {name: value for name, value in overrides.items() if value is not None}
        ratio = mlp_ratio if decoder_mlp_ratio is None else decoder_mlp_ratio
        architecture = replace(SIZES[size], mlp_ratio=mlp_ratio, decoder_mlp_ratio=ratio, **changes)
        if norm_pix and rgb_heads:
            raise ValueError("norm_pix predicts normalised patches, not images for rgb_heads; switch one of them off")
        if norm_pix and architecture.patch_size**2 * channels == 1:
            raise ValueError("norm_pix needs patches of more than one value; set generator.patch_size above 1")
        if layer_norm_eps <= 0:
            raise ValueError(f"generator.layer_norm_eps must be above 0, got {layer_norm_eps:g}")
        if layer_scale is not None and layer_scale <= 0:
            raise ValueError(f"generator.layer_scale must be above 0, got {layer_scale:g}; null switches it off")
        if not 0 <= drop_path < 1:
            raise ValueError(f"generator.drop_path must be at least 0 and below 1, got {drop_path:g}")
        self.image_size, self.channels, self.norm_pix, self.drop_path = image_size, channels, norm_pix, drop_path
        self.patch_size = _check_patch_size(image_size, architecture.patch_size)
        self.resolutions = resolutions(image_size) if rgb_heads else (image_size,)
        """Sizes of the images it writes, largest first."""
        self.encoder = Encoder(
            image_size,
            channels,
            mean,
            std,
            patch_size=architecture.patch_size,
            width=architecture.width,
            depth=architecture.depth,
            heads=architecture.heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            layer_scale=layer_scale,
            positions=positions,
            relative_positions=relative_positions,
        )
        self.grid = self.encoder.grid
        self.decoder = Decoder(
            architecture.width,
            channels,
            self.grid,
            patch_size=architecture.patch_size,
            width=architecture.decoder_width,
            depth=architecture.decoder_depth,
            heads=architecture.decoder_heads,
            mlp_ratio=architecture.decoder_mlp_ratio,
            taps=tapped_blocks(architecture.depth, architecture.decoder_depth, skip_map) if skips else (),
            own_projections=skip_projection == "per_skip",
            levels=len(self.resolutions),
            head_form=head_form,
            qkv_bias=qkv_bias,
            layer_scale=layer_scale,
            positions=positions,
            mask_token=not encoder_mask_tokens,
            attention=decoder_attention,
            class_token=decoder_class_token,
        )
        # The generator's, not the encoder's, which would then have a weight that whole images never need.
        token = nn.Parameter(0.02 * torch.randn(1, 1, architecture.width)) if encoder_mask_tokens else None
        self.register_parameter("mask_token", token)
        self.recompute = False
        self._native_heads = head_form == "native"
        self.layer_norm_eps = layer_norm_eps
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = layer_norm_eps

    def forward(self, images: Tensor, mask: Tensor, drop_path_masks: Tensor | None = None) -> Reconstruction:
        """The reconstruction of images (B, C, H, W) in [0, 1] from the patches that the mask (B, L) leaves visible.

        The mask, and the encoder's `drop_path_masks` (B, blocks, 2), may be on the CPU while the images are elsewhere:
        then the host never waits for the device.
        """
        self._check(images, mask)
        visible = visible_patches(mask).to(images.device, non_blocking=True)
        mask = mask.to(images.device, non_blocking=True)
        drop_path_masks = None if drop_path_masks is None else drop_path_masks.to(images.device, non_blocking=True)
        tokens, tapped = self.encode(images, mask, visible, drop_path_masks)
        if self.mask_token is not None:
            visible = torch.arange(mask.shape[1], device=images.device).expand(len(images), -1)
        encoded, skipped = tokens.view_as(tokens), {block: each.view_as(each) for block, each in tapped.items()}
        prediction, latent = self.decoder(encoded, skipped, visible)
        return Reconstruction(
            pyramid=self.to_images(prediction, images),
            prediction=prediction,
            mask=mask,
            tokens=tokens,
            latent=latent,
            grid=self.grid,
            encoded=(encoded, *skipped.values()),
            uses_target_statistics=self.norm_pix,
        )

    def encode(
        self, images: Tensor, mask: Tensor, visible: Tensor, drop_path_masks: Tensor | None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What `Encoder.encode` returns of visible patches (B, V), or of all, hidden ones replaced by mask tokens.

        All is on one device; see `forward`.
        """
        replaced = None if self.mask_token is None else (mask, self.mask_token)
        return self.encoder.encode(
            images,
            visible if replaced is None else None,
            self.decoder.taps,
            drop_path_masks=drop_path_masks,
            replaced=replaced,
            recompute=self.recompute,
        )

    def target(self, images: Tensor, levels: int = 1) -> Pyramid:
        """Target of pixel losses on `Reconstruction.prediction`: images (B, C, H, W) in [0, 1], normalised and pooled.

        With norm_pix each patch has mean 0 and standard deviation 1 over its pixels and channels, and there is one
        level. No clamping; levels are (B, C, H_s, W_s), largest first.
        """
        normalised = self.encoder.normalise(images)
        if not self.norm_pix:
            return pyramid(normalised, levels)
        if levels != 1:
            raise ValueError(f"with norm_pix the target has 1 level, not {levels}: normalised patches cannot be pooled")
        mean, std = self._patch_statistics(images)
        patches = (patchify(normalised, self.patch_size) - mean) / std
        return (unpatchify(patches, self.patch_size, self.grid),)

    def to_images(self, prediction: Pyramid, images: Tensor) -> Pyramid:
        """Images (B, C, H_s, W_s) on the [0, 1] scale, not clamped, of a prediction of the same shapes.

        norm_pix uses the statistics of the true patches of images (B, C, H, W).
        """
        if self.norm_pix:
            mean, std = self._patch_statistics(images)
            patches = patchify(prediction[0], self.patch_size) * std + mean
            prediction = (unpatchify(patches, self.patch_size, self.grid),)
        return tuple(self.encoder.denormalise(level) for level in prediction)

    def recompute_activations(self) -> None:
        """Keep of each block its input alone between a step's passes; the backward pass computes the rest again."""
        self.recompute = self.decoder.recompute = True

    def freeze_encoder(self) -> None:
        """Leave the decoder alone to learn: weights of the encoder, its mask token included, get no gradient."""
        self.encoder.requires_grad_(False)
        if self.mask_token is not None:
            self.mask_token.requires_grad_(False)

    @property
    def fallback_heads(self) -> tuple[Size, ...]:
        """Sizes whose RGB head has the full form although `native` is set, as the patch size does not divide there."""
        heads = zip(self.resolutions[1:], self.decoder.heads, strict=True)
        return tuple(size for size, head in heads if isinstance(head, RgbHead) and head.is_full and self._native_heads)

    def _patch_statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std (B, L, 1) of each normalised patch over all its values, without gradient (MAE)."""
        patches = patchify(self.encoder.normalise(images.detach()), self.patch_size)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    def _check(self, images: Tensor, mask: Tensor) -> None:
        """Raise ValueError unless images are float (B, C, H, W) of the size built for, and the mask bool (B, L)."""
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
    """Number of trainable parameters, and the same with the fixed position codes, which other projects count too."""
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    positions = sum(buffer.numel() for name, buffer in module.named_buffers() if name.split(".")[-1] == "pos_embed")
    return trainable, trainable + positions


def _check_patch_size(image_size: Size, patch_size: int) -> int:
    """Return `patch_size` if both sides of the images are multiples of it; raise ValueError otherwise."""
    if image_size[0] % patch_size or image_size[1] % patch_size:
        height, width = (max(1, side // patch_size) * patch_size for side in image_size)
        raise ValueError(
            f"image size {image_size[0]}x{image_size[1]} is not a multiple of patch_size {patch_size}; "
            f"use {height}x{width} or set generator.patch_size"
        )
    return patch_size
