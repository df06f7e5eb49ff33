"""What decides a detection: the keys of its recipes."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from perceptual_mae.config.from_signature import Section
from perceptual_mae.data.image_tree import check_root
from perceptual_mae.errors import UserError
from perceptual_mae.transfer.detection.dataset import CocoImages, TrainTransform
from perceptual_mae.transfer.detection.detector import Heads, NeckName, NormName
from perceptual_mae.transfer.detection.scores import Backend
from perceptual_mae.transfer.detection.trunk import AbsolutePositions, RelativePositions
from perceptual_mae.transfer.recipes import (
    BatchSize,
    Decay,
    OptimizerSection,
    ScheduleSection,
    Share,
    Side,
    TrainingSection,
)

Count = Annotated[int, Field(ge=1, le=100_000)]
Channels = Annotated[int, Field(ge=1, le=16384)]
Factor = Annotated[float, Field(gt=0, le=100)]


class DataSection(Section):
    """Images with objects in COCO's format; paths are relative to the root.

    Options:
        root: folder of the data set [none]
        train_images: folder of the training images [COCO]
        train_annotations: file of their annotations [COCO]
        val_images: folder of the images that are scored [COCO]
        val_annotations: file of their annotations [COCO]
    """

    root: str = "coco"
    train_images: str = "train2017"
    train_annotations: str = "annotations/instances_train2017.json"
    val_images: str = "val2017"
    val_annotations: str = "annotations/instances_val2017.json"

    def open(self) -> tuple[CocoImages, CocoImages]:
        """Return the training images that have objects, and all that are scored; UserError for what is not there."""
        root = check_root(self.root, "give --root, the folder of the data set")
        train = CocoImages(self.folder(root, "train_images"), root / self.train_annotations, with_empty=False)
        val = CocoImages(self.folder(root, "val_images"), root / self.val_annotations)
        if (train.classes, train.category_ids) != (val.classes, val.category_ids):
            raise UserError(f"the categories of {train.file} and {val.file} differ; give both the same ids and names")
        return train, val

    def folder(self, root: Path, key: str) -> Path:
        """Return a folder of images; UserError where there is none."""
        folder: Path = root / getattr(self, key)
        if not folder.is_dir():
            raise UserError(f"data.{key}: {folder} is not a folder; give --root, or set data.{key}")
        return folder


class EncoderSection(Section):
    """How the encoder reads large images.

    Options:
        image_size: side in pixels to which images are fitted and padded; a multiple of four patches [ViTDet]
        window: side in patches of the windows within which most blocks attend; null: all attend globally [ViTDet]
        global_blocks: blocks, from 1, that attend globally; null: those that four_taps reads, else the last of each
            quarter [ViTDet]
        taps: four blocks, from 1, that four_taps reads; null: those of the run's skips, else the last of each
            quarter [MIMDet]
        relative_positions: decomposed: vectors for rows and columns in each block (ViTDet); tables: one for windows and
            one for global blocks (MIMDet); none: those that the encoder was pre-trained with [ViTDet]
        positions: interpolated: the encoder's codes, trained on; sincos: fixed codes of the grid (MIMDet) [ViTDet]
        drop_path: rate of stochastic depth of the last block; earlier ones have less [ViTDet]
    """

    image_size: Side = 1024
    window: Annotated[int, Field(ge=1, le=1024)] | None = 14
    global_blocks: tuple[BatchSize, ...] | None = None
    taps: tuple[BatchSize, BatchSize, BatchSize, BatchSize] | None = None
    relative_positions: RelativePositions = "decomposed"
    positions: AbsolutePositions = "interpolated"
    drop_path: Decay = 0.1


class DetectorSection(Section):
    """Neck and heads of Mask R-CNN.

    Options:
        neck: simple_pyramid of the last map (ViTDet), or four_taps and a feature pyramid network (MIMDet) [ViTDet]
        norm: of the heads and of four_taps' pyramid: layer, group or batch, over all processes [ViTDet]
        channels: of the pyramid and of the heads' convolutions [ViTDet]
        hidden: width of the linear layer that classes and boxes are read from [ViTDet]
        proposals: of an image, before and after suppression; in evaluation half as many before [detectron2]
        sampled: anchors and proposals of an image that the losses count [detectron2]
        score_threshold: detections below are left out [detectron2]
        detections: of an image at most; COCO's scores count 100 [detectron2]
    """

    neck: NeckName = "simple_pyramid"
    norm: NormName = "layer"
    channels: Channels = 256
    hidden: Channels = 1024
    proposals: tuple[Count, Count] = (2000, 1000)
    sampled: tuple[Count, Count] = (256, 512)
    score_threshold: Share = 0.05
    detections: Count = 100

    def heads(self) -> Heads:
        """Return the sizes and counts of the heads."""
        values: dict[str, Any] = dict(self)
        del values["neck"]
        return Heads(**values)


class AugmentSection(Section):
    """Large-scale jitter of training images.

    Options:
        scale: smallest and largest factor by which an image is scaled, before a crop of the image size [ViTDet]
        flip: probability of a horizontal flip [ViTDet]
    """

    scale: tuple[Factor, Factor] = (0.1, 2.0)
    flip: Share = 0.5

    def transform(self, side: int) -> TrainTransform:
        """Return what prepares a training image; UserError where the factors are in the wrong order."""
        if self.scale[0] > self.scale[1]:
            raise UserError(f"augment.scale: is {list(self.scale)}; give the smallest factor first")
        return TrainTransform(side, scale=self.scale, flip=self.flip)


class EvaluationSection(Section):
    """How detections are scored: at the images' own size.

    Options:
        backend: pycocotools, or faster_coco_eval, which gives the same numbers sooner [COCO]
        batch_size: images of one pass through the detector [ours]
        pictures: of the best and of the worst images, and of the first ones, each so many [ours]
    """

    backend: Backend = "pycocotools"
    batch_size: BatchSize = 1
    pictures: Annotated[int, Field(ge=1, le=100)] = 3


class DetectConfig(Section):
    """Everything that decides a detection but the encoder and the seed.

    Options:
        data: images with objects in COCO's format [COCO]
        encoder: how the encoder reads large images [ViTDet]
        detector: neck and heads [ViTDet]
        augment: large-scale jitter [ViTDet]
        optimizer: AdamW and its rates [ViTDet]
        schedule: length, and the learning rate along it [ViTDet]
        training: batch, precision, workers [ours]
        evaluation: how detections are scored [COCO]
    """

    data: DataSection = DataSection()
    encoder: EncoderSection = EncoderSection()
    detector: DetectorSection = DetectorSection()
    augment: AugmentSection = AugmentSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
