"""Segmentation of whole images of any size, at once or by overlapping windows, and its scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torchvision import tv_tensors

from perceptual_mae.evaluation.finite import check_finite
from perceptual_mae.images import Size
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.transfer.loading import keys_of, own_share
from perceptual_mae.transfer.segmentation.batch import SegmentationBatch
from perceptual_mae.transfer.segmentation.data import IGNORED, SegmentationData
from perceptual_mae.transfer.segmentation.network import Segmenter, resized
from perceptual_mae.transfer.segmentation.scores import confusion, scores_of
from perceptual_mae.transfer.transforms import fitted, resize


@dataclass(frozen=True)
class Inference:
    """How an image is passed to the network: scaled to fit into `base`, then in windows of `crop` or (None) whole."""

    base: Size | None
    crop: Size | None
    stride: Size
    flip: bool = False

    def prepare(self, sample: tuple[tv_tensors.Image, tv_tensors.Mask]) -> tuple[Tensor, Tensor]:
        """Return the scaled image, uint8 (3, h, w), and the mask as it is."""
        image, mask = sample
        if self.base is None:
            return image, mask
        return resize(image, fitted((image.shape[-2], image.shape[-1]), self.base, any_orientation=True)), mask

    def __call__(self, network: Segmenter, images: Tensor, size: Size) -> Tensor:
        """Return scores (B, K, *size) of images (B, 3, h, w) in [0, 1]: means over windows and the mirrored image."""
        scores = self._one_side(network, images)
        if self.flip:
            scores = (scores + self._one_side(network, images.flip(-1)).flip(-1)) / 2
        return resized(scores, size)

    def _one_side(self, network: Segmenter, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        patch = network.trunk.patch_size
        if self.crop is None:
            padded = padded_to(images, (-(-height // patch) * patch, -(-width // patch) * patch))
            whole: Tensor = network(padded)
            return whole[..., :height, :width]
        padded = padded_to(images, (max(height, self.crop[0]), max(width, self.crop[1])))
        total: Tensor | None = None
        counts = torch.zeros(padded.shape[-2:], device=images.device)
        for top, left in windows((padded.shape[-2], padded.shape[-1]), self.crop, self.stride):
            window = (..., slice(top, top + self.crop[0]), slice(left, left + self.crop[1]))
            scores = network(padded[window])
            if total is None:
                total = scores.new_zeros(*scores.shape[:2], *padded.shape[-2:])
            total[window] += scores
            counts[window] += 1
        assert total is not None
        return (total / counts)[..., :height, :width]


def windows(size: Size, crop: Size, stride: Size) -> Iterator[Size]:
    """Yield top and left of windows that cover an image at least as large as they are; the last lie at its edges."""
    tops, lefts = (
        sorted({min(start, whole - part) for start in range(0, whole - part + step, step)})
        for whole, part, step in zip(size, crop, stride, strict=True)
    )
    yield from ((top, left) for top in tops for left in lefts)


def padded_to(images: Tensor, size: Size) -> Tensor:
    """Return images (B, C, h, w) with black below and to the right."""
    below, right = size[0] - images.shape[-2], size[1] - images.shape[-1]
    return F.pad(images, (0, right, 0, below)) if below or right else images


@dataclass
class Scored:
    """Scores of a pass: the confusion matrix (K, K) of all images, and each image's mIoU by its index."""

    matrix: Tensor
    per_image: dict[int, float] = field(default_factory=dict)


@torch.no_grad()
def score_images(
    network: Segmenter,
    data: SegmentationData,
    inference: Inference,
    accelerator: Accelerator,
    *,
    workers: int = 0,
    name: str = "scoring",
    on_progress: OnProgress = no_progress,
) -> Scored:
    """Return the scores of all images, on all processes, of which each takes its share."""
    network.eval()
    classes, device = len(data.classes), accelerator.device
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    own = torch.full((len(data),), -1.0, dtype=torch.float64, device=device)
    for batch in own_share(data, inference.prepare, one_image, accelerator, name, on_progress, workers=workers):
        predicted, truth = predict(network, batch, inference, accelerator)
        part = confusion(predicted, truth, classes, IGNORED)
        matrix += part
        own[batch.indices] = scores_of(part)["miou"] if int(part.sum()) else -1.0
    matrix, own = accelerator.reduce(matrix, reduction="sum"), accelerator.gather(own[None]).amax(0)
    return Scored(matrix.cpu(), {index: value for index, value in enumerate(own.tolist()) if value >= 0})


@torch.no_grad()
def predict(
    network: Segmenter, batch: SegmentationBatch, inference: Inference, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Return predicted and true classes (1, H, W), on the device, of one image."""
    moved = batch.to(accelerator.device)
    with accelerator.autocast():
        scores = inference(network, moved.images, (moved.masks.shape[-2], moved.masks.shape[-1]))
    return check_finite(scores, "scores").argmax(1), moved.masks


def one_image(samples: Sequence[tuple[Tensor, Tensor]], keys: Sequence[tuple[int, int]]) -> SegmentationBatch:
    """Return a batch of one image, whose mask may have another size."""
    ((image, mask),) = samples
    return SegmentationBatch(*keys_of(keys), image.as_subclass(Tensor)[None], mask.as_subclass(Tensor)[None])
