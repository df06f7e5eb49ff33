"""UperNet (Xiao et al. 2018) on four maps of an encoder: neck, head, auxiliary head, and their losses.

Shapes: B images, D width of the encoder, C channels of the head, K classes, h x w a map.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from perceptual_mae.data.draws import draw_drop_path_masks
from perceptual_mae.generator.vit import LayerNorm
from perceptual_mae.transfer.encoders import TimmTrunk, Trunk
from perceptual_mae.transfer.segmentation.batch import SegmentationBatch

Norm = Literal["batch", "group"]
Channels = Annotated[int, Field(ge=1, le=16384)]
GROUPS = 32


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a batch has one value a channel: one image, pooled to 1x1."""

    def forward(self, values: Tensor) -> Tensor:
        if self.training and values.numel() == values.shape[1]:
            return F.batch_norm(
                values, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(values)


class GroupNorm(nn.GroupNorm):
    """Group norm that takes one image of 1x1, too, which torch refuses: a group has several channels."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.group_norm(values, self.num_groups, self.weight, self.bias, self.eps)


def norm_of(channels: int, norm: Norm) -> nn.Module:
    """Return a norm of maps (B, channels, h, w); groups are 32, or as many as leave four channels to each."""
    if norm == "batch":
        return BatchNorm(channels)
    most = min(GROUPS, max(1, channels // 4))
    return GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


def convolution(before: int, after: int, size: int, norm: Norm) -> nn.Sequential:
    """Return a convolution without bias that keeps the map's size, a norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, size, padding=size // 2, bias=False), norm_of(after, norm), nn.ReLU(inplace=True)
    )


class FourTaps(nn.Module):
    """Makes a pyramid of four maps (B, D, h, w) of one stride: x4, x2, x1 and x1/2 their size (BEiT, MAE).

    with_norms: a LayerNorm of its own for each map before. Maps whose strides differ pass as they are.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, norm: Norm, with_norms: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(each) if with_norms else nn.Identity() for each in channels)
        self.scales: nn.ModuleList | None = None
        self.strides = tuple(strides)
        if len(set(strides)) == 1:
            first, second, _, _ = channels
            self.scales = nn.ModuleList(
                [
                    nn.Sequential(
                        nn.ConvTranspose2d(first, first, 2, stride=2),
                        norm_of(first, norm),
                        nn.GELU(),
                        nn.ConvTranspose2d(first, first, 2, stride=2),
                    ),
                    nn.ConvTranspose2d(second, second, 2, stride=2),
                    nn.Identity(),
                    nn.MaxPool2d(2, stride=2, ceil_mode=True),
                ]
            )
            self.strides = (strides[0] // 4, strides[0] // 2, strides[0], strides[0] * 2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        normed = [
            norm(each.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if isinstance(norm, nn.LayerNorm) else each
            for norm, each in zip(self.norms, maps, strict=True)
        ]
        if self.scales is None:
            return normed
        return [scale(each) for scale, each in zip(self.scales, normed, strict=True)]


class UPerHead(nn.Module):
    """Scores of classes (B, K, h, w), at the size of the largest map, of a pyramid of maps (largest first).

    The smallest map is pooled to grids of `pools` cells a side, whose means are resized and joined to it (PSPNet); each
    map takes what the one below has, resized (FPN); all are then resized to the largest, joined and classified.
    """

    def __init__(
        self,
        before: Sequence[int],
        classes: int,
        *,
        channels: int,
        pools: Sequence[int],
        norm: Norm,
    ) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.pooled = nn.ModuleList(convolution(before[-1], channels, 1, norm) for _ in pools)
        self.pool_bottleneck = convolution(before[-1] + len(pools) * channels, channels, 3, norm)
        self.laterals = nn.ModuleList(convolution(each, channels, 1, norm) for each in before[:-1])
        self.smooth = nn.ModuleList(convolution(channels, channels, 3, norm) for _ in before[:-1])
        self.bottleneck = convolution(len(before) * channels, channels, 3, norm)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: Sequence[Tensor], dropout: Tensor | None = None) -> Tensor:
        """`dropout` (B, C): factors of the channels that are classified."""
        size = maps[-1].shape[-2:]
        context = [maps[-1]]
        for cells, convolve in zip(self.pools, self.pooled, strict=True):
            context.append(resized(convolve(F.adaptive_avg_pool2d(maps[-1], cells)), size))
        levels = [lateral(each) for lateral, each in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.pool_bottleneck(torch.cat(context, dim=1)))
        for below in range(len(levels) - 1, 0, -1):
            levels[below - 1] = levels[below - 1] + resized(levels[below], levels[below - 1].shape[-2:])
        levels = [*(smooth(each) for smooth, each in zip(self.smooth, levels[:-1], strict=True)), levels[-1]]
        joined = torch.cat([resized(each, levels[0].shape[-2:]) for each in levels], dim=1)
        scores: Tensor = self.classify(dropped(self.bottleneck(joined), dropout))
        return scores


class FCNHead(nn.Module):
    """Scores of classes (B, K, h, w) of one map by a convolution and a classifier; it only helps in training."""

    def __init__(self, before: int, classes: int, *, channels: int, norm: Norm) -> None:
        super().__init__()
        self.convolve = convolution(before, channels, 3, norm)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, level: Tensor, dropout: Tensor | None = None) -> Tensor:
        scores: Tensor = self.classify(dropped(self.convolve(level), dropout))
        return scores


class Segmenter(nn.Module):
    """Classes of pixels: an encoder's maps through a neck and UperNet's head.

    Options:
        channels: channels of the head [UperNet]
        pools: cells a side of the grids that the smallest map is pooled to [UperNet]
        auxiliary_channels: channels of the auxiliary head on the third map; 0: there is none [UperNet]
        auxiliary_weight: weight of its loss [UperNet]
        dropout: share of channels dropped before each classifier [UperNet]
        norm: of neck and heads: batch (over all processes on GPUs), or group, for batches of a few images [UperNet]
    """

    def __init__(
        self,
        trunk: Trunk | TimmTrunk,
        classes: int,
        ignore_index: int,
        drop_path: float = 0.0,
        *,
        channels: Channels = 768,
        pools: tuple[Channels, ...] = (1, 2, 3, 6),
        auxiliary_channels: Annotated[int, Field(ge=0, le=16384)] = 256,
        auxiliary_weight: Annotated[float, Field(ge=0, le=1000)] = 0.4,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.trunk, self.depth, self.is_frozen = trunk, trunk.depth, False
        self.ignore_index, self.drop_path, self.dropout = ignore_index, drop_path, dropout
        self.auxiliary_weight = auxiliary_weight
        self.widths = {"head": channels, "auxiliary": auxiliary_channels}
        self.neck = FourTaps(trunk.channels, trunk.strides, norm=norm, with_norms=trunk.taps.has_norms)
        self.head = UPerHead(trunk.channels, classes, channels=channels, pools=pools, norm=norm)
        self.auxiliary: FCNHead | None = None
        if auxiliary_channels:
            self.auxiliary = FCNHead(trunk.channels[2], classes, channels=auxiliary_channels, norm=norm)
        initialise(self.neck, self.head, self.auxiliary)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B, K, H, W), float32, of images (B, 3, H, W) in [0, 1], at their size."""
        scores = self.head(self._levels(images, None))
        return resized(scores.float(), images.shape[-2:])

    def loss(self, batch: SegmentationBatch, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean cross-entropy of pixels, of the head and, weighted, of the auxiliary head."""
        levels = self._levels(batch.images, draws.get("drop_path"))
        losses = {"cross_entropy": self._cross_entropy(self.head(levels, draws.get("head")), batch.masks)}
        if self.auxiliary is not None:
            scores = self.auxiliary(levels[2], draws.get("auxiliary"))
            losses["auxiliary"] = self.auxiliary_weight * self._cross_entropy(scores, batch.masks)
        return losses

    def draw(self, batch: SegmentationBatch, seed: int) -> dict[str, Tensor]:
        """Return drop-path masks (B, blocks, 2) and dropout factors (B, C) of both heads."""
        draws: dict[str, Tensor] = {}
        if self.drop_path and self.trunk.depth:
            generators = batch.draws("drop path", seed)
            draws["drop_path"] = draw_drop_path_masks(self.drop_path, self.trunk.depth, generators)
        for name, width in self.widths.items():
            if self.dropout and width:
                rows = [torch.rand(width, generator=each) for each in batch.draws(f"dropout {name}", seed)]
                draws[name] = (torch.stack(rows) >= self.dropout).float() / (1 - self.dropout)
        return draws

    def freeze_trunk(self) -> None:
        """Leave neck and heads alone to learn; the encoder stays in evaluation mode."""
        self.trunk.requires_grad_(False)
        self.is_frozen = True

    def train(self, mode: bool = True) -> "Segmenter":
        super().train(mode)
        if self.is_frozen:
            self.trunk.eval()
        return self

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: the trunk's own, and its last for all that is not the trunk's."""
        inside = name.removeprefix("trunk.")
        return self.trunk.layer_of(inside) if inside != name else self.trunk.depth + 1

    def _levels(self, images: Tensor, drop_path_masks: Tensor | None) -> list[Tensor]:
        levels: list[Tensor] = self.neck(self.trunk(images, drop_path_masks))
        return levels

    def _cross_entropy(self, scores: Tensor, masks: Tensor) -> Tensor:
        """Return the mean over all pixels, those that are ignored with a loss of 0 (as mmsegmentation takes it).

        A batch of ignored pixels alone has the loss 0, not none.
        """
        scores = resized(scores.float(), masks.shape[-2:])
        summed = F.cross_entropy(scores, masks, ignore_index=self.ignore_index, reduction="sum")
        return summed / masks.numel()


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (B, C, h, w) at another size, bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def dropped(maps: Tensor, factors: Tensor | None) -> Tensor:
    """Return maps (B, C, h, w) times factors (B, C)."""
    return maps if factors is None else maps * factors[:, :, None, None].to(maps.dtype)


def initialise(*modules: nn.Module | None) -> None:
    """Draw weights as He et al. 2015 for ReLU, and those of classifiers with a deviation of 0.01; biases are 0."""
    for name, module in [pair for each in modules if each is not None for pair in each.named_modules()]:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if name.endswith("classify"):
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
