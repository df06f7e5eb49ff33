"""Detection as a dense transfer: Mask R-CNN on an encoder, scored as COCO does."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.processes import as_main_process
from perceptual_mae.files import write_json
from perceptual_mae.progress import OnProgress
from perceptual_mae.transfer.detection.batch import collate
from perceptual_mae.transfer.detection.build import Sketch, build_detector, parts_of
from perceptual_mae.transfer.detection.config import DetectConfig
from perceptual_mae.transfer.detection.dataset import CocoImages, TrainTransform
from perceptual_mae.transfer.detection.detector import Detector
from perceptual_mae.transfer.detection.pictures import detection_page
from perceptual_mae.transfer.detection.scores import (
    Detections,
    average_precision,
    check_backend,
    coco_results,
    detect,
)
from perceptual_mae.transfer.dry_run import dry_run_lines
from perceptual_mae.transfer.encoders import Source
from perceptual_mae.transfer.loading import Collate
from perceptual_mae.transfer.seeds import Files, mean_of
from perceptual_mae.transfer.taps import Taps
from perceptual_mae.transfer.task import Task
from perceptual_mae.visualization.image_grid import save

COCO_CLASSES = 80
RECORDED = ("box_ap", "mask_ap")
"""Scores that are recorded while a detector is trained, and of each class."""


@dataclass(frozen=True)
class ScoredDetections:
    """The detections in all images with their scores, and those of each class; see `average_precision`."""

    detections: list[Detections]
    scores: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]


class Detection(Task[DetectConfig, CocoImages, Detector, ScoredDetections]):
    """Boxes and masks of objects."""

    command = "detect"
    config_type = DetectConfig

    @classmethod
    def read(cls, config: DetectConfig) -> tuple[CocoImages, CocoImages]:
        check_backend(config.evaluation.backend)
        return config.data.open()

    @classmethod
    def dry_run(cls, source: Source, config: DetectConfig, *, frozen: bool = False) -> list[str]:
        """Return the lines of a dry run (see `Task`); without files of images there are COCO's 80 classes."""
        try:
            data, _ = config.data.open()
            classes, images = len(data.classes), f"{len(data):,} training images with objects"
        except UserError as mistake:
            classes, images = COCO_CLASSES, f"no images yet: {str(mistake).splitlines()[0]}"
        with torch.device("meta"):
            detector, taps = build_detector(replace(source, from_scratch=True), config, classes, 0, frozen=frozen)
            side, sketch = config.encoder.image_size, Sketch(detector.train(), config.detector.heads())
            lines = dry_run_lines(sketch, torch.empty(1, 3, side, side), detector, config)
        strides: Any = detector.backbone.trunk.strides
        maps = f"maps of blocks {list(taps.blocks)} ({taps.source}) of stride {strides[-1]}; {classes} classes"
        return [maps, *lines, images]

    def build(self, seed: int) -> tuple[Detector, Taps]:
        return build_detector(self.source, self.config, len(self.train_data.classes), seed, frozen=self.frozen)

    def parts(self, network: Detector) -> Mapping[str, nn.Module]:
        return parts_of(network)

    def transform(self) -> TrainTransform:
        return self.config.augment.transform(self.config.encoder.image_size)

    @property
    def collate(self) -> Collate:
        return collate

    def data_report(self) -> Mapping[str, Any]:
        left_out = {"train": self.train_data.degenerate, "val": self.test_data.degenerate}
        return {"data": "coco", "split": "val", "left_out": left_out}

    def score(
        self, network: Detector, accelerator: Accelerator, name: str, on_progress: OnProgress
    ) -> ScoredDetections:
        section, data = self.config.evaluation, self.test_data
        detections = detect(
            network,
            data,
            self.config.encoder.image_size,
            accelerator,
            batch_size=section.batch_size,
            workers=self.config.training.workers,
            name=name,
            on_progress=on_progress,
        )
        scored = None
        if accelerator.is_main_process:
            pairs = ((each.decoded(data.images[each.index].size), data.truth(each.index)) for each in detections)
            scored = average_precision(pairs, data.classes, section.backend)
        shared = as_main_process(scored)
        assert shared is not None
        return ScoredDetections(detections, *shared)

    def recorded_scores(self, scored: ScoredDetections) -> Mapping[str, float]:
        return {name: value for name in RECORDED if (value := scored.scores[name]) is not None}

    def result(self, scored: ScoredDetections) -> dict[str, Any]:
        return {"scores": scored.scores, "per_class": scored.per_class}

    def gathered(self, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the mean scores of each class; None where it has no object."""
        tables = [each["per_class"] for each in results.values()]
        return {
            "per_class": {
                name: {"objects": entry["objects"]}
                | {key: mean_of([each[name][key] for each in tables], 5) for key in RECORDED}
                for name, entry in tables[0].items()
            }
        }

    def write(
        self,
        network: Detector,
        scored: ScoredDetections,
        accelerator: Accelerator,
        files: Files,
        seed: int,
        *,
        has_page: bool,
    ) -> None:
        """Write the detections of a seed in COCO's format of results and, where it `has_page`, the page of them."""
        write_json(files.of_seed(seed, "detections.json"), coco_results(scored.detections, self.test_data))
        if has_page:
            save(detection_page(scored.detections, self.test_data, self.config.evaluation.pictures), files.pictures)
