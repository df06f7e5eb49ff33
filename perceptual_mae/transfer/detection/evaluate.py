"""An encoder transferred to detection, several seeds, with all that the scores stand on."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from perceptual_mae.data.epoch_order import EpochPlan, ProcessShare
from perceptual_mae.evaluation.processes import as_main_process
from perceptual_mae.evaluation.resumption import Checkpoints, ResumableTrainings
from perceptual_mae.files import write_json
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.checkpoint import write_tensors
from perceptual_mae.transfer.detection.batch import collate
from perceptual_mae.transfer.detection.build import build_detector, groups_of, parts_of
from perceptual_mae.transfer.detection.config import DetectConfig
from perceptual_mae.transfer.detection.dataset import CocoImages
from perceptual_mae.transfer.detection.detector import Detector
from perceptual_mae.transfer.detection.pictures import detection_page
from perceptual_mae.transfer.detection.scores import Detections, average_precision, coco_results, detect
from perceptual_mae.transfer.encoders import Source
from perceptual_mae.transfer.loading import SampleLoader
from perceptual_mae.transfer.seeds import Files, summary
from perceptual_mae.transfer.segmentation.evaluate import without_reading
from perceptual_mae.transfer.training import train
from perceptual_mae.visualization.image_grid import save

Scores = tuple[dict[str, float | None], dict[str, dict[str, float | None]]]


def detect_run(
    source: Source,
    config: DetectConfig,
    train_data: CocoImages,
    test_data: CocoImages,
    accelerator: Accelerator,
    files: Files,
    *,
    seeds: Sequence[int] = (0,),
    frozen: bool = False,
    save_weights: bool = False,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Return COCO's scores in [0, 1] of an encoder trained with Mask R-CNN, and what they stand on.

    A seed decides neck and heads, the order and the draws, and from scratch the encoder's weights. Nothing is chosen on
    the scored images: the last step counts. frozen: neck and heads alone are trained. Pictures of the first seed, the
    records of each training and its detections in COCO's format of results go to `files`. With `checkpoints` SIGINT and
    SIGTERM save and raise Interrupted, and the same call goes on, exactly; they are the caller's to discard when the
    report is written.
    """
    classes, training = len(train_data.classes), config.training
    loader_of(config, train_data, accelerator, seeds[0])  # refuses what cannot be augmented or shared
    detector, taps = build_detector(source, config, classes, seeds[0], frozen=frozen)
    report: dict[str, Any] = {
        "kind": "detect",
        **source.describe(),
        "from_scratch": source.from_scratch,
        "frozen": frozen,
        "taps": {"blocks": list(taps.blocks), "source": taps.source, "norms": taps.has_norms},
        "parameters": {
            name: sum(each.numel() for each in part.parameters()) for name, part in parts_of(detector).items()
        },
        "drop_path": detector.drop_path,
        "precision": accelerator.mixed_precision,
        "data": "coco",
        "split": "val",
        "train_images": len(train_data),
        "test_images": len(test_data),
        "classes": classes,
        "left_out": {"train": train_data.degenerate, "val": test_data.degenerate},
        "seeds": list(seeds),
        "recipe": config.model_dump(mode="json", by_alias=True),
        "processes": accelerator.num_processes,
    }
    del detector
    files.folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in report.items() if key not in ("run", "processes")}
    settings["recipe"] = without_reading(report["recipe"])
    with ResumableTrainings(accelerator, settings, checkpoints) as trainings:
        for seed in seeds:
            name = f"seed {seed}"
            if name in trainings.results:
                continue
            detector, _ = build_detector(source, config, classes, seed, frozen=frozen)
            score = partial(score_detector, detector, test_data, config, accelerator)
            records = train(
                detector,
                loader_of(config, train_data, accelerator, seed),
                groups_of(detector, config),
                config.schedule.at(config.optimizer.lr),
                accelerator,
                seed=seed,
                batch_size=training.batch_size,
                name=name,
                betas=config.optimizer.betas,
                clip_norm=config.optimizer.clip_norm,
                log_every=training.log_every,
                metrics=files.metrics(seed),
                trainings=trainings,
                score=lambda score=score: shown_scores(score()[1]),  # type: ignore[misc]
                score_every=training.score_every,
                on_progress=on_progress,
            )
            detector.to(accelerator.device)
            detections, scored = score(name=f"{name}, val", on_progress=trainings.stoppable(on_progress))
            if accelerator.is_main_process:
                write_json(results_file(files, seed), coco_results(detections, test_data))
                if seed == seeds[0]:
                    save(detection_page(detections, test_data, config.evaluation.pictures), files.pictures)
                if save_weights:
                    write_tensors(files.weights(seed), detector.state_dict())
            curve = [{"step": each["step"], "total": each["total"]} for each in records]
            trainings.finish({"scores": scored[0], "per_class": scored[1], "curve": curve})
    return report | gathered([trainings.results[f"seed {seed}"] for seed in seeds], seeds)


def loader_of(config: DetectConfig, data: CocoImages, accelerator: Accelerator, seed: int) -> SampleLoader:
    """Return the batches of a training; an epoch is one pass over the images, filled up to whole batches."""
    training, batch_size = config.training, config.training.batch_size
    whole = -(-len(data) // batch_size) * batch_size
    plan = EpochPlan(len(data), batch_size, seed=seed, epoch_images=whole)
    return SampleLoader(
        data,
        config.augment.transform(config.encoder.image_size),
        collate,
        ProcessShare(plan, accelerator.num_processes, accelerator.process_index, training.accumulation),
        seed=seed,
        workers=training.workers,
    )


def score_detector(
    detector: Detector,
    data: CocoImages,
    config: DetectConfig,
    accelerator: Accelerator,
    *,
    name: str = "val",
    on_progress: OnProgress = no_progress,
) -> tuple[list[Detections], Scores]:
    """Return the detections in all images, and their scores as `average_precision` does, on all processes."""
    detections = detect(
        detector,
        data,
        config.encoder.image_size,
        accelerator,
        batch_size=config.evaluation.batch_size,
        workers=config.training.workers,
        name=name,
        on_progress=on_progress,
    )
    scored: Scores | None = None
    if accelerator.is_main_process:
        pairs = ((each.decoded(data.images[each.index].size), data.truth(each.index)) for each in detections)
        scored = average_precision(pairs, data.classes, config.evaluation.backend)
    shared = as_main_process(scored)
    assert shared is not None
    return detections, shared


def results_file(files: Files, seed: int) -> Path:
    """Return the file of a seed's detections, in COCO's format of results."""
    return files.folder / f"{files.name}_seed_{seed}.detections.json"


def shown_scores(scores: Scores) -> dict[str, float]:
    """Return the numbers that are recorded while a detector is trained."""
    return {name: value for name, value in scores[0].items() if name in ("box_ap", "mask_ap") and value is not None}


def gathered(results: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the scores of all seeds with their means, for each class as well."""
    first = results[0]
    per_class = {
        name: {"objects": entry["objects"]}
        | {key: mean_of([each["per_class"][name][key] for each in results]) for key in ("box_ap", "mask_ap")}
        for name, entry in first["per_class"].items()
    }
    return {
        "scores": {
            name: summary([each["scores"][name] for each in results])
            for name, value in first["scores"].items()
            if value is not None
        },
        "per_class": per_class,
        "curves": {str(seed): each["curve"] for seed, each in zip(seeds, results, strict=True)},
    }


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of a class's scores; None where it has no object."""
    present = [value for value in values if value is not None]
    return round(sum(present) / len(present), 5) if present else None
