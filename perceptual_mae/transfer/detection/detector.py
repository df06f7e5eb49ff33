"""Mask R-CNN of torchvision's parts on a trunk and a neck, with the heads of ViTDet and MIMDet.

Those have a two-layer RPN, a box head of four convolutions and one linear layer, and four convolutions for masks.
Shapes: B images, S pixels a side, N objects or detections of one image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from perceptual_mae.data.draws import draw_drop_path_masks
from perceptual_mae.transfer.detection.batch import DetectionBatch
from perceptual_mae.transfer.detection.necks import LEVELS, Norm, SimplePyramid, TapsPyramid

NormName = Literal["layer", "group", "batch"]
NeckName = Literal["simple_pyramid", "four_taps"]


class TrunkModule(Protocol):
    """What a trunk has; see `WindowedTrunk`."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    depth: int

    def layer_of(self, name: str) -> int: ...


@dataclass(frozen=True)
class Heads:
    """Sizes of the heads and counts of what they take; the defaults are those of ViTDet and MIMDet, and detectron2's.

    channels: of the pyramid and all convolutions. hidden: of the linear layer that classes and boxes are read from.
    proposals: of an image, before and after suppression in training (evaluation begins with half as many). sampled:
    anchors and proposals of an image that the losses count. score_threshold, detections: what evaluation returns.
    """

    channels: int = 256
    hidden: int = 1024
    norm: NormName = "layer"
    proposals: tuple[int, int] = (2000, 1000)
    sampled: tuple[int, int] = (256, 512)
    score_threshold: float = 0.05
    detections: int = 100


class Backbone(nn.Module):
    """Trunk and neck: images (B, 3, S, S) in [0, 1] to a pyramid of float32 maps (B, P, ., .).

    The maps leave autocast: torchvision's anchors have the maps' type, and bfloat16 does not count to 1024.
    `drop_path_masks` (B, blocks, 2) are set for one forward: torchvision passes nothing but images.
    """

    def __init__(self, trunk: nn.Module, neck: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.trunk, self.neck = trunk, neck
        self.drop_path_masks: Tensor | None = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.trunk(images, self.drop_path_masks)
        return {level: each.float() if each.dtype != torch.float64 else each for level, each in self.neck(maps).items()}


class Detector(MaskRCNN):  # type: ignore[misc]
    """Mask R-CNN on images of one size that are normalised by the trunk, with `num_classes` classes and the background.

    Classes are 1 to K; 0 is the background. In evaluation mode a call with images (B, 3, S, S) in [0, 1] returns a
    dictionary an image: boxes (N, 4) in its pixels, labels, scores and masks (N, 1, 28, 28) in [0, 1], which fill
    the boxes. drop_path: the rate of the last block in training.
    """

    def __init__(
        self,
        trunk: nn.Module,
        neck: nn.Module,
        num_classes: int,
        heads: Heads | None = None,
        *,
        drop_path: float = 0.0,
    ) -> None:
        heads = heads or Heads()
        norm, channels, convolutions = NORMS[heads.norm], heads.channels, [heads.channels] * 4
        described = cast(TrunkModule, trunk)
        finest = described.strides[0] // 4 if len(set(described.strides)) == 1 else described.strides[0]
        sizes = tuple((8 * finest * 2**level,) for level in range(5))
        before, after = heads.proposals
        super().__init__(
            Backbone(trunk, neck, channels),
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
            rpn_head=RPNHead(channels, 3, conv_depth=2),
            box_roi_pool=MultiScaleRoIAlign(list(LEVELS), 7, 0),
            box_head=FastRCNNConvFCHead((channels, 7, 7), convolutions, [heads.hidden], norm),
            box_predictor=FastRCNNPredictor(heads.hidden, num_classes + 1),
            mask_roi_pool=MultiScaleRoIAlign(list(LEVELS), 14, 0),
            mask_head=MaskRCNNHeads(channels, convolutions, 1, norm),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
            rpn_pre_nms_top_n_train=before,
            rpn_pre_nms_top_n_test=max(1, before // 2),
            rpn_post_nms_top_n_train=after,
            rpn_post_nms_top_n_test=after,
            rpn_batch_size_per_image=heads.sampled[0],
            box_batch_size_per_image=heads.sampled[1],
            box_score_thresh=heads.score_threshold,
            box_detections_per_img=heads.detections,
        )
        for part, layers in (
            (self.rpn.head, ("cls_logits", "bbox_pred")),
            (self.roi_heads.box_predictor, ("cls_score", "bbox_pred")),
            (self.roi_heads.mask_predictor, ("mask_fcn_logits",)),
        ):
            for layer in layers:
                setattr(part, layer, InFloat32(part.get_submodule(layer)))
        self.transform = FixedSizeTransform()  # torchvision's own would normalise and resize again
        self.drop_path, self.depth, self.is_frozen = drop_path, described.depth, False

    def forward(
        self, images: Any, targets: Any = None, draws: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return the losses (training mode) or the detections; `draws` as `draw` returns them."""
        self.backbone.drop_path_masks = (draws or {}).get("drop_path")
        try:
            result: dict[str, Tensor] | list[dict[str, Tensor]] = super().forward(images, targets)
        finally:
            self.backbone.drop_path_masks = None
        return result

    def loss(self, batch: DetectionBatch, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the five losses of Mask R-CNN, each a mean over what was sampled; the objective is their sum."""
        losses = self(batch.images, batch.targets, draws)
        assert isinstance(losses, dict)
        return {name.removeprefix("loss_"): value for name, value in losses.items()}

    def draw(self, batch: DetectionBatch, seed: int) -> dict[str, Tensor]:
        """Return the drop-path masks (B, blocks, 2) of a batch, functions of (seed, pass, index)."""
        if not self.drop_path:
            return {}
        return {"drop_path": draw_drop_path_masks(self.drop_path, self.depth, batch.draws("drop path", seed))}

    def freeze_trunk(self) -> None:
        """Train neck and heads alone."""
        self.is_frozen, self.drop_path = True, 0.0
        self.backbone.trunk.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Detector":
        super().train(mode)
        if self.is_frozen:
            self.backbone.trunk.eval()
        return self

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter for layer decay; neck and heads count as the one after the last block."""
        prefix = "backbone.trunk."
        trunk = cast(TrunkModule, self.backbone.trunk)
        return trunk.layer_of(name.removeprefix(prefix)) if name.startswith(prefix) else trunk.depth + 1


class FixedSizeTransform(nn.Module):
    """In the place of torchvision's transform: images (B, 3, S, S) pass as they are, and masks are pasted by others."""

    def forward(self, images: Tensor, targets: Any) -> tuple[ImageList, Any]:
        size = (images.shape[-2], images.shape[-1])
        return ImageList(images, [size] * len(images)), targets

    def postprocess(self, detections: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Return detections as they are."""
        return detections


class InFloat32(nn.Module):
    """A last layer that leaves autocast: proposals and detections are ranked, and bfloat16 has ties everywhere."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        device = "cpu" if values.is_meta else values.device.type  # autocast knows no meta device
        with torch.autocast(device, enabled=False):
            result: Tensor = self.layer(values if values.dtype == torch.float64 else values.float())
        return result


class ProposalBatchNorm(nn.BatchNorm2d):
    """Batch norm that leaves its running statistics alone where no proposal is to be normalised."""

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == 0:
            assert self.weight is not None
            assert self.bias is not None
            return input * self.weight[:, None, None] + self.bias[:, None, None]
        return super().forward(input)


def group_norm(channels: int) -> nn.Module:
    """Return group norm of 32 groups."""
    return nn.GroupNorm(32, channels)


NORMS: Mapping[NormName, Norm] = {"layer": LayerNorm2d, "group": group_norm, "batch": ProposalBatchNorm}


def build_neck(neck: NeckName, trunk: nn.Module, heads: Heads, *, has_norms: bool = False) -> nn.Module:
    """Return a neck for a trunk's maps; the norm of the heads is that of four_taps, too.

    has_norms: each map of four_taps gets a LayerNorm.
    """
    described = cast(TrunkModule, trunk)
    if neck == "simple_pyramid":
        return SimplePyramid(described.channels, heads.channels)
    norm = NORMS[heads.norm]
    return TapsPyramid(described.channels, described.strides, heads.channels, norm=norm, has_norms=has_norms)
