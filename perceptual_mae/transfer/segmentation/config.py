"""What decides a segmentation: the keys of its recipes."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from perceptual_mae.config.from_signature import Choice, Options, Section, choice, options_of
from perceptual_mae.errors import UserError
from perceptual_mae.transfer.recipes import BatchSize, Decay, OptimizerSection, ScheduleSection, Side, TrainingSection
from perceptual_mae.transfer.segmentation.augmentation import SegmentationTransform
from perceptual_mae.transfer.segmentation.data import SEGMENTATION_DATA
from perceptual_mae.transfer.segmentation.network import Segmenter


class DataSection(Choice):
    """Images with a class for each pixel.

    Options:
        kind: layout of the folder [ours]
    """


class EncoderSection(Section):
    """How the encoder is changed before it is trained on.

    Options:
        taps: four blocks, from 1, whose outputs are handed over; null: those of the run's skips, else the standard
            ones, 4, 6, 8 and 12 of 12 [BEiT]
        learn_positions: position codes are trained, whatever they were in pre-training [BEiT]
        relative_positions: add a table of relative positions, zeros, to each block [BEiT]
        layer_scale: initial factor of LayerScale on all branches, where the encoder has none; null: none [ours]
        drop_path: rate of stochastic depth of the last block; earlier ones have less [BEiT]
    """

    taps: tuple[BatchSize, BatchSize, BatchSize, BatchSize] | None = None
    learn_positions: bool = True
    relative_positions: bool = False
    layer_scale: Annotated[float, Field(gt=0, le=1000)] | None = None
    drop_path: Decay = 0.1


class HeadSection(Options):
    """UperNet's head."""


class AugmentSection(Options):
    """Augmentation of training images."""


class EvaluationSection(Section):
    """How held-out images are scored: at the size of their masks.

    Options:
        split: images that are scored [mmsegmentation]
        mode: slide: overlapping windows of the crop's size, whose scores are averaged; whole: the image at
            once [mmsegmentation]
        base: short and long side into which an image just fits; null: its own size [mmsegmentation]
        stride: pixels down and right from one window to the next; null: two thirds of the crop [mmsegmentation]
        flip: average with the scores of the mirrored image [mmsegmentation]
        pictures: of the best and of the worst images, and of the first ones, each so many [ours]
    """

    split: Literal["val", "test"] = "val"
    mode: Literal["slide", "whole"] = "slide"
    base: tuple[Side, Side] | None = None
    stride: tuple[Side, Side] | None = None
    flip: bool = False
    pictures: Annotated[int, Field(ge=1, le=100)] = 3


SEGMENT_OPTIONS: Mapping[str, tuple[type[Options], Mapping[str, Callable[..., Any]]]] = {
    "data": (DataSection, SEGMENTATION_DATA),
    "head": (HeadSection, {"": Segmenter}),
    "augment": (AugmentSection, {"": SegmentationTransform}),
}
"""Sections that hold the options of a class or function: those that there are, by kind ("" where it has none)."""
_DATA = choice(DataSection, SEGMENTATION_DATA, "layout", "pairs")
_HEAD = options_of(HeadSection, Segmenter)
_AUGMENT = options_of(AugmentSection, SegmentationTransform)
_UNSAID: Any = {}


class SegmentConfig(Section):
    """Everything that decides a segmentation but the encoder and the seed.

    Options:
        data: images with a class for each pixel [ours]
        encoder: how the encoder is changed [BEiT]
        head: neck, head and auxiliary head [UperNet]
        augment: augmentation of training images [mmsegmentation]
        optimizer: AdamW and its rates [BEiT]
        schedule: length, and the learning rate along it [BEiT]
        training: batch, precision, workers [ours]
        evaluation: how held-out images are scored [mmsegmentation]
    """

    data: Annotated[SerializeAsAny[DataSection], _DATA]
    encoder: EncoderSection = EncoderSection()
    head: Annotated[SerializeAsAny[HeadSection], _HEAD] = Field(default=_UNSAID, validate_default=True)
    augment: Annotated[SerializeAsAny[AugmentSection], _AUGMENT] = Field(default=_UNSAID, validate_default=True)
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of training images."""
        crop: tuple[int, int] = self.augment.options()["crop"]
        return crop

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one window of a sliding evaluation to the next."""
        height, width = self.crop
        stride = self.evaluation.stride or (max(1, height * 2 // 3), max(1, width * 2 // 3))
        if stride[0] > height or stride[1] > width:
            raise UserError(f"evaluation.stride: {list(stride)} leaves pixels out; at most the crop, {[height, width]}")
        return stride
