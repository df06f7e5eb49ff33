"""An encoder transferred to segmentation, several seeds, with all that the scores stand on."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from perceptual_mae.config.build import user_mistakes
from perceptual_mae.data.epoch_order import EpochPlan, ProcessShare
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.resumption import Checkpoints, ResumableTrainings
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.checkpoint import write_tensors
from perceptual_mae.seeding import stream_seed
from perceptual_mae.transfer.encoders import TIMM, Source, Trunk, adapt_encoder
from perceptual_mae.transfer.loading import SampleLoader
from perceptual_mae.transfer.seeds import Files, summary
from perceptual_mae.transfer.segmentation.batch import collate_segmentation
from perceptual_mae.transfer.segmentation.config import SegmentConfig
from perceptual_mae.transfer.segmentation.data import IGNORED, SegmentationData
from perceptual_mae.transfer.segmentation.inference import Inference, Scored, score_images
from perceptual_mae.transfer.segmentation.network import Segmenter
from perceptual_mae.transfer.segmentation.pictures import segmentation_page
from perceptual_mae.transfer.segmentation.scores import accuracies, constant_floor, ious, scores_of
from perceptual_mae.transfer.taps import Taps
from perceptual_mae.transfer.training import parameter_groups, train
from perceptual_mae.visualization.image_grid import save


def build_segmenter(source: Source, config: SegmentConfig, classes: int, seed: int, *, frozen: bool) -> Segmenter:
    """Return the network at its first step: the source's encoder, and neck and heads drawn from the seed."""
    section = config.encoder
    if source.run is None:
        trunk: Any = source.timm_trunk(config.crop, stream_seed("segmenter", seed))
    else:
        encoder = source.encoder(seed)
        if encoder.channels != 3:
            raise UserError(f"{source.words}: its encoder takes {encoder.channels} channel(s), the images have 3")
        encoder = user_mistakes(
            lambda: adapt_encoder(
                encoder,
                config.crop,
                learn_positions=section.learn_positions,
                layer_scale=section.layer_scale,
                relative_positions=section.relative_positions,
            )
        )
        trunk = Trunk(encoder, chosen_taps(source, config, len(encoder.blocks)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("segmenter", seed))
        network: Segmenter = config.head.build(trunk, classes, IGNORED, 0.0 if frozen else section.drop_path)
    if frozen:
        network.freeze_trunk()
    return network


def chosen_taps(source: Source, config: SegmentConfig, depth: int) -> Taps:
    """Return the recipe's taps, else the source's own."""
    blocks = config.encoder.taps
    if blocks is None:
        return source.taps
    if list(blocks) != sorted(blocks) or not 1 <= blocks[0] <= blocks[-1] <= depth:
        raise UserError(f"encoder.taps: is {list(blocks)}; give four blocks from 1 to {depth}, in their order")
    return Taps(blocks, "chosen")


def groups_of(network: Segmenter, config: SegmentConfig) -> list[dict[str, Any]]:
    """Return the parameter groups of a network by layers."""
    optimizer = config.optimizer
    return parameter_groups(
        network,
        network.layer_of,
        network.trunk.depth + 1,
        layer_decay=optimizer.layer_decay,
        weight_decay=optimizer.weight_decay,
    )


def inference_of(config: SegmentConfig) -> Inference:
    """Return how held-out images are shown to the network."""
    section = config.evaluation
    crop = config.crop if section.mode == "slide" else None
    return Inference(section.base, crop, config.stride, section.flip)


def describe_source(source: Source, config: SegmentConfig, network: Segmenter, *, frozen: bool) -> dict[str, Any]:
    """Return what a score says of the encoder, its taps and the network."""
    taps = network.trunk.taps
    parts = {name: sum(each.numel() for each in part.parameters()) for name, part in network.named_children()}
    drops = config.encoder.drop_path and not (frozen or source.words.startswith(TIMM))
    return {
        **source.describe(),
        "from_scratch": source.from_scratch,
        "frozen": frozen,
        "taps": {"blocks": list(taps.blocks), "source": taps.source, "norms": taps.has_norms},
        "parameters": parts,
        "drop_path": config.encoder.drop_path if drops else 0.0,
    }


def segment_run(
    source: Source,
    config: SegmentConfig,
    train_data: SegmentationData,
    test_data: SegmentationData,
    accelerator: Accelerator,
    files: Files,
    *,
    seeds: Sequence[int] = (0,),
    frozen: bool = False,
    save_weights: bool = False,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Return scores in [0, 1] of an encoder trained with a head on classes of pixels, and what they stand on.

    A seed decides the head, the order and the draws, and from scratch the encoder's weights. Nothing is chosen on the
    scored images: the last step counts. frozen: the head alone is trained. Pictures of the first seed and the records
    of each training go to `files`. With `checkpoints` SIGINT and SIGTERM save and raise Interrupted, and the same call
    goes on, exactly; they are the caller's to discard when the report is written.
    """
    classes, training = len(train_data.classes), config.training
    loader_of(config, train_data, accelerator, seeds[0])  # refuses what cannot be augmented or shared
    inference = inference_of(config)
    described = describe_source(
        source, config, build_segmenter(source, config, classes, seeds[0], frozen=frozen), frozen=frozen
    )
    report: dict[str, Any] = {
        "kind": "segment",
        **described,
        "precision": accelerator.mixed_precision,
        "data": config.data.kind,
        "split": config.evaluation.split,
        "train_images": len(train_data),
        "test_images": len(test_data),
        "classes": classes,
        "seeds": list(seeds),
        "recipe": config.model_dump(mode="json", by_alias=True),
        "processes": accelerator.num_processes,
    }
    files.folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in report.items() if key not in ("run", "processes")}
    settings["recipe"] = without_reading(report["recipe"])
    with ResumableTrainings(accelerator, settings, checkpoints) as trainings:
        for seed in seeds:
            name = f"seed {seed}"
            if name in trainings.results:
                continue
            network = build_segmenter(source, config, classes, seed, frozen=frozen)
            score = partial(score_images, network, test_data, inference, accelerator, workers=training.workers)
            records = train(
                network,
                loader_of(config, train_data, accelerator, seed),
                groups_of(network, config),
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
                score=lambda score=score: rounded(scores_of(score().matrix)),  # type: ignore[misc]
                score_every=training.score_every,
                on_progress=on_progress,
            )
            network.to(accelerator.device)
            shown = trainings.stoppable(on_progress)
            scored = score(name=f"{name}, {config.evaluation.split}", on_progress=shown)
            if accelerator.is_main_process and seed == seeds[0]:
                pictures = config.evaluation.pictures
                save(segmentation_page(network, test_data, inference, accelerator, scored, pictures), files.pictures)
            if accelerator.is_main_process and save_weights:
                write_tensors(files.weights(seed), network.state_dict())
            trainings.finish(result_of(scored, records, test_data))
    return report | gathered([trainings.results[f"seed {seed}"] for seed in seeds], seeds)


def result_of(scored: Scored, records: Sequence[dict[str, Any]], data: SegmentationData) -> dict[str, Any]:
    """Return what a seed's training came to, as JSON."""
    floor = constant_floor(scored.matrix)
    return {
        "scores": rounded(scores_of(scored.matrix)),
        "iou": by_class(ious(scored.matrix), data),
        "accuracy": by_class(accuracies(scored.matrix), data),
        "pixels": scored.matrix.sum(1).tolist(),
        "floor": {**floor, "class": data.classes[floor["class"]]},
        "confusion": scored.matrix.tolist(),
        "curve": [{"step": each["step"], "total": each["total"]} for each in records],
    }


def gathered(results: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the scores of all seeds with their means, for each class as well, and the floor of a constant answer."""
    names = list(results[0]["scores"])
    total = sum(results[0]["pixels"]) or 1
    per_class = {
        name: {
            "iou": mean_of([each["iou"][name] for each in results]),
            "accuracy": mean_of([each["accuracy"][name] for each in results]),
            "share": round(pixels / total, 6),
        }
        for name, pixels in zip(results[0]["iou"], results[0]["pixels"], strict=True)
    }
    return {
        "scores": {name: summary([each["scores"][name] for each in results]) for name in names},
        "floor": rounded(results[0]["floor"]),
        "per_class": per_class,
        "confusion": {str(seed): each["confusion"] for seed, each in zip(seeds, results, strict=True)},
        "curves": {str(seed): each["curve"] for seed, each in zip(seeds, results, strict=True)},
    }


def loader_of(config: SegmentConfig, data: SegmentationData, accelerator: Accelerator, seed: int) -> SampleLoader:
    """Return the batches of a training; an epoch is one pass over the images, filled up to whole batches."""
    training, batch_size = config.training, config.training.batch_size
    whole = -(-len(data) // batch_size) * batch_size
    plan = EpochPlan(len(data), batch_size, seed=seed, epoch_images=whole)
    return SampleLoader(
        data,
        config.augment.build(),
        collate_segmentation,
        ProcessShare(plan, accelerator.num_processes, accelerator.process_index, training.accumulation),
        seed=seed,
        workers=training.workers,
    )


def without_reading(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without what decides only where images are, how they are read and what is logged."""
    kept = {section: dict(values) for section, values in recipe.items()}
    kept["data"].pop("root", None)
    for key in ("workers", "log_every"):
        kept["training"].pop(key, None)
    return kept


def by_class(values: Tensor, data: SegmentationData) -> dict[str, float | None]:
    """Return values (K,) by the name of the class; None where there is none."""
    numbers = [None if value != value else round(value, 6) for value in values.tolist()]
    return dict(zip(unique(data.classes), numbers, strict=True))


def unique(names: Sequence[str]) -> list[str]:
    """Return names with a number behind those that occur before: ADE20K has two of some."""
    return [
        name if name not in names[:place] else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of those that are there."""
    present = [value for value in values if value is not None]
    return round(sum(present) / len(present), 6) if present else None


def rounded(scores: dict[str, Any]) -> dict[str, Any]:
    """Return scores to six places; NaN, of no pixels at all, as it is refused by JSON, is 0."""
    return {
        name: (0.0 if value != value else round(value, 6)) if isinstance(value, float) else value
        for name, value in scores.items()
    }
