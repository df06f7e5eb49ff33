"""Segmentation as a dense transfer: UperNet on an encoder, scored by one confusion matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from perceptual_mae.errors import UserError
from perceptual_mae.progress import OnProgress
from perceptual_mae.transfer.dry_run import dry_run_lines
from perceptual_mae.transfer.encoders import Source
from perceptual_mae.transfer.loading import Collate
from perceptual_mae.transfer.seeds import Files, mean_of
from perceptual_mae.transfer.segmentation.augmentation import SegmentationTransform
from perceptual_mae.transfer.segmentation.batch import SegmentationBatch, collate_segmentation
from perceptual_mae.transfer.segmentation.build import build_segmenter
from perceptual_mae.transfer.segmentation.config import SegmentConfig
from perceptual_mae.transfer.segmentation.data import SegmentationData, num_classes
from perceptual_mae.transfer.segmentation.inference import Inference, Scored, score_images
from perceptual_mae.transfer.segmentation.network import Segmenter
from perceptual_mae.transfer.segmentation.pictures import segmentation_page
from perceptual_mae.transfer.segmentation.scores import accuracies, constant_floor, ious, scores_of
from perceptual_mae.transfer.taps import Taps
from perceptual_mae.transfer.task import Task
from perceptual_mae.visualization.image_grid import save


@dataclass(eq=False)
class Segmentation(Task[SegmentConfig, SegmentationData, Segmenter, Scored]):
    """Classes of pixels. Raises UserError for windows that leave pixels out."""

    command = "segment"
    config_type = SegmentConfig

    inference: Inference = field(init=False)

    def __post_init__(self) -> None:
        self.inference = inference_of(self.config)

    @classmethod
    def read(cls, config: SegmentConfig) -> tuple[SegmentationData, SegmentationData]:
        return config.data.build("train"), config.data.build(config.evaluation.split)

    @classmethod
    def dry_run(cls, source: Source, config: SegmentConfig, *, frozen: bool = False) -> list[str]:
        classes = num_classes(config.data)
        with torch.device("meta"):
            network = build_segmenter(replace(source, from_scratch=True), config, classes, 0, frozen=frozen).train()
            batch = SegmentationBatch(
                torch.zeros(2, dtype=torch.int64, device="cpu"),
                torch.zeros(2, dtype=torch.int64, device="cpu"),
                torch.empty(2, 3, *config.crop),
                torch.empty(2, *config.crop, dtype=torch.int64),
            )  # two images: a backbone's batch norm refuses one whose last map has one pixel
            lines = dry_run_lines(network, batch, network, config, images=2)
        try:
            images = f"{len(config.data.build('train')):,} training images"
        except UserError as mistake:
            images = f"no images yet: {mistake}"
        taps, strides = network.trunk.taps, list(network.neck.strides)
        return [f"maps of blocks {list(taps.blocks)} ({taps.source}), strides {strides}", *lines, images]

    def build(self, seed: int) -> tuple[Segmenter, Taps]:
        network = build_segmenter(self.source, self.config, len(self.train_data.classes), seed, frozen=self.frozen)
        return network, network.trunk.taps

    def parts(self, network: Segmenter) -> Mapping[str, nn.Module]:
        return dict(network.named_children())

    def transform(self) -> SegmentationTransform:
        transform: SegmentationTransform = self.config.augment.build()
        return transform

    @property
    def collate(self) -> Collate:
        return collate_segmentation

    def data_report(self) -> Mapping[str, Any]:
        return {"data": self.config.data.kind, "split": self.config.evaluation.split}

    def score(self, network: Segmenter, accelerator: Accelerator, name: str, on_progress: OnProgress) -> Scored:
        return score_images(
            network,
            self.test_data,
            self.inference,
            accelerator,
            workers=self.config.training.workers,
            name=name,
            on_progress=on_progress,
        )

    def recorded_scores(self, scored: Scored) -> Mapping[str, float]:
        return rounded(scores_of(scored.matrix))

    def result(self, scored: Scored) -> dict[str, Any]:
        floor, classes = constant_floor(scored.matrix), self.test_data.classes
        return {
            "scores": rounded(scores_of(scored.matrix)),
            "iou": by_class(ious(scored.matrix), classes),
            "accuracy": by_class(accuracies(scored.matrix), classes),
            "pixels": scored.matrix.sum(1).tolist(),
            "floor": {**floor, "class": classes[floor["class"]]},
            "confusion": scored.matrix.tolist(),
        }

    def gathered(self, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the floor of a constant answer, the mean scores of classes, and the confusion of each seed."""
        of_seeds = list(results.values())
        total = sum(of_seeds[0]["pixels"]) or 1
        per_class = {
            name: {
                "iou": mean_of([each["iou"][name] for each in of_seeds], 6),
                "accuracy": mean_of([each["accuracy"][name] for each in of_seeds], 6),
                "share": round(pixels / total, 6),
            }
            for name, pixels in zip(of_seeds[0]["iou"], of_seeds[0]["pixels"], strict=True)
        }
        return {
            "floor": rounded(of_seeds[0]["floor"]),
            "per_class": per_class,
            "confusion": {str(seed): each["confusion"] for seed, each in results.items()},
        }

    def write(
        self, network: Segmenter, scored: Scored, accelerator: Accelerator, files: Files, seed: int, *, has_page: bool
    ) -> None:
        if has_page:
            count = self.config.evaluation.pictures
            page = segmentation_page(network, self.test_data, self.inference, accelerator, scored, count)
            save(page, files.pictures)


def inference_of(config: SegmentConfig) -> Inference:
    """Return how held-out images are passed to the network."""
    section = config.evaluation
    crop = config.crop if section.mode == "slide" else None
    return Inference(section.base, crop, config.stride, section.flip)


def by_class(values: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    """Return values (K,) by the name of the class; None where there is none."""
    numbers = [None if value != value else round(value, 6) for value in values.tolist()]
    return dict(zip(unique(classes), numbers, strict=True))


def unique(names: Sequence[str]) -> list[str]:
    """Return names with a number behind those that occur before: ADE20K has two of some."""
    return [
        name if name not in names[:place] else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def rounded(scores: dict[str, Any]) -> dict[str, Any]:
    """Return scores to six places; NaN, of no pixels at all, as it is refused by JSON, is 0."""
    return {
        name: (0.0 if value != value else round(value, 6)) if isinstance(value, float) else value
        for name, value in scores.items()
    }
