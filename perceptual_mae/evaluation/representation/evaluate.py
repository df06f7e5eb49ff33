"""A run's representation scored on labelled images: linear probes, the layer map, neighbours, the spectrum."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from accelerate import Accelerator

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.labelled_data import LabelledData
from perceptual_mae.evaluation.open_run import describe, open_generator, uses_ema
from perceptual_mae.evaluation.representation import kth_heads
from perceptual_mae.evaluation.representation.augmented_probe import (
    CROP_SCALE,
    RECIPES,
    Recipe,
    score_heads,
    train_probe,
)
from perceptual_mae.evaluation.representation.feature_parts import FeatureParts
from perceptual_mae.evaluation.representation.features import (
    Extractor,
    Features,
    both_splits,
    build_extractors,
    extract,
    layer_features,
)
from perceptual_mae.evaluation.representation.knn import NEIGHBOURS, TEMPERATURE, knn_accuracies
from perceptual_mae.evaluation.representation.kth_heads import HeadScores, train_and_score
from perceptual_mae.evaluation.representation.linear_probe import (
    BATCH_SIZE,
    EPOCHS,
    HELD_OUT,
    ProbeOptimizer,
    ProbeResult,
    linear_probe,
)
from perceptual_mae.evaluation.representation.spectrum import spectrum_scores
from perceptual_mae.evaluation.resumption import Checkpoints, ResumableTrainings, decisive
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.run import Run

Protocol = Literal["cached", "mae", "paper", "kth"]
Head = Literal["linear", "dense", "mlp"]
AGREEMENT = "no accuracy: the share of equal entries of one-hot vectors over K classes, 1 - 2/K (1 - top-1)"
FEWEST_IMAGES = 3
"""One to choose by, two to fit."""
Scores = dict[str, dict[str, Any]]
"""Extractor -> feature -> its scores."""


def probe_run(
    run: Run,
    data: LabelledData,
    accelerator: Accelerator,
    *,
    protocol: Protocol = "cached",
    optimizer: ProbeOptimizer = "lbfgs",
    head: Head = "linear",
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int | None = None,
    batch_size: int | None = None,
    layers: bool = False,
    baselines: bool = False,
    ema: bool | None = None,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Return linear-probe accuracies of a run's encoder with everything they stand on.

    `cached` computes features once and tries settings on a held-out part of train; `mae` and `paper` train on augmented
    images with published settings; `kth` trains the `head` on features computed once, with the KTH study's settings,
    and scores it on train, too (other protocols have the linear head alone). `layers` probes every block (cached only).
    Where features are computed once, `spectrum` has RankMe and alpha-ReQ of those that the probe is fitted on.
    `baselines` adds the run's encoder before training, and pixels. With several processes only the main one has scores.
    With `checkpoints` SIGINT and SIGTERM save and raise Interrupted, and the same call goes on, exactly; they are the
    caller's to discard when the report is written.
    """
    if head != "linear" and protocol != "kth":
        raise ValueError(f"a {head} head is trained by the protocol 'kth', not by '{protocol}'")
    if len(data.train) < FEWEST_IMAGES:
        raise UserError(f"{len(data.train)} training images are too few for a probe; give {FEWEST_IMAGES} or more")
    generator = open_generator(run, accelerator, ema)
    report: dict[str, Any] = {"protocol": "layers" if layers else protocol, "seeds": list(seeds)}
    report |= describe(run, generator.encoder, data, accelerator, ema=uses_ema(run, ema))
    if layers:
        extractors: dict[str, Extractor] = {"encoder": layer_features(generator.encoder)}
    else:
        extractors = build_extractors(generator, run.config, accelerator, baselines=baselines)
    if protocol == "cached":
        options: dict[str, Any] = {"optimizer": optimizer, "held_out": HELD_OUT}
        if optimizer != "lbfgs":
            options |= {"epochs": epochs or EPOCHS, "batch_size": batch_size or BATCH_SIZE}
        report |= {**options, "augmentation": None}
    elif protocol == "kth":
        options = {"head": head, "epochs": epochs or kth_heads.EPOCHS}
        options |= {"batch_size": batch_size or kth_heads.BATCH_SIZE}
        report |= {**options, "augmentation": None, "one_hot_agreement": AGREEMENT}
    else:
        recipe = RECIPES[protocol]
        options = {"epochs": epochs or recipe.epochs, "batch_size": batch_size or recipe.usual_batch(len(data.train))}
        augmentation = {"crop": recipe.crop, "crop_scale": list(CROP_SCALE), "flip": 0.5}
        report |= {**options, "augmentation": augmentation}
    scores: Scores = {}
    spectra: Scores = {}
    settings = decisive(report, data) | {"extractors": list(extractors)}
    with ResumableTrainings(accelerator, settings, checkpoints) as trainings:
        for name, extractor in extractors.items():
            if protocol in RECIPES:
                scores[name] = _probe_online(
                    extractor, data, trainings, seeds, RECIPES[protocol], options, name, on_progress
                )
                continue
            fit = partial(linear_probe if protocol == "cached" else train_and_score, **options)
            scores[name], about = _probe_features(extractor, data, trainings, seeds, fit, name, on_progress)
            spectra[name] = about.pop("spectrum", {})
            report |= about
    return report | {"scores": scores} | ({"spectrum": spectra} if spectra else {})


def knn_run(
    run: Run,
    data: LabelledData,
    accelerator: Accelerator,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    baselines: bool = False,
    ema: bool | None = None,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Return nearest-neighbour accuracies of a run's encoder, by number of neighbours, with what they stand on.

    Numbers of neighbours above the number of training images are left out. `spectrum` has RankMe and alpha-ReQ of the
    training features. With several processes only the main one has scores.
    """
    if len(data.train) < min(neighbours):
        raise UserError(f"{len(data.train)} training images hold no {min(neighbours)} neighbours; ask for fewer")
    generator = open_generator(run, accelerator, ema)
    report: dict[str, Any] = {"protocol": "knn", "temperature": temperature}
    report |= describe(run, generator.encoder, data, accelerator, ema=uses_ema(run, ema))
    scores: Scores = {}
    spectra: Scores = {}
    for name, extractor in build_extractors(generator, run.config, accelerator, baselines=baselines).items():
        train, test = both_splits(extractor, data, accelerator, name, on_progress)
        report |= {"train_images": len(train.labels), "test_images": len(test.labels)}  # those that could be read
        scores[name] = {}
        for key, features in train.named.items():
            device = accelerator.device
            by_count = knn_accuracies(
                features.to(device),
                train.labels.to(device),
                test.named[key].to(device),
                test.labels.to(device),
                neighbours=neighbours,
                temperature=temperature,
            )
            scores[name][key] = {str(count): round(value, 5) for count, value in by_count.items()}
        spectra[name] = _spectra(train)
    return report | {"scores": scores, "spectrum": spectra}


def summarise(accuracies: Sequence[float]) -> dict[str, Any]:
    """Return mean and sample standard deviation (None for one) of accuracies in [0, 1], and each of them."""
    std = round(statistics.stdev(accuracies), 5) if len(accuracies) > 1 else None
    return {
        "accuracy": round(math.fsum(accuracies) / len(accuracies), 5),
        "deviation": std,
        "by_seed": [round(value, 5) for value in accuracies],
    }


def _spectra(features: Features) -> dict[str, dict[str, float | None]]:
    return {name: spectrum_scores(values) for name, values in features.named.items()}


def _probe_features(
    extractor: Extractor,
    data: LabelledData,
    trainings: ResumableTrainings,
    seeds: Sequence[int],
    fit: Callable[..., ProbeResult | HeadScores],
    name: str,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the scores of features that are computed once, by their name, and metadata for the report.

    The main process alone fits, and has them.
    """
    about = f"{name}, features"
    metadata: dict[str, Any] = trainings.results.get(about, {})
    left = metadata.get("features", [""])  # of which it is not known yet what there is
    left = [key for key in left if any(_task(name, key, seed) not in trainings.results for seed in seeds)]
    if left:
        shown, parts_of = trainings.stoppable(on_progress), partial(FeatureParts, trainings)
        train, test = both_splits(extractor, data, trainings.accelerator, name, shown, parts_of)
    if not trainings.accelerator.is_main_process:
        return {}, {}
    with trainings.alone():
        if not metadata:
            metadata = {"train_images": len(train.labels), "test_images": len(test.labels)}  # those that could be read
            metadata |= {"features": list(train.named), "spectrum": _spectra(train)}
            trainings.begin(about)
            trainings.finish(metadata)
            left = metadata["features"]
        for number, key in enumerate(left):
            on_progress(f"{name}, fitting", number, len(left))
            _fit_to(key, train, test, data, trainings, seeds, fit, name)
    scores = {}
    for key in metadata["features"]:
        results = [trainings.results[_task(name, key, seed)] for seed in seeds]
        scores[key] = summarise([result["accuracy"] for result in results]) | _further(results)
    return scores, {key: value for key, value in metadata.items() if key != "features"}


def _task(name: str, feature: str, seed: int) -> str:
    return f"{name}, {feature}, seed {seed}"


def _fit_to(
    key: str,
    train: Features,
    test: Features,
    data: LabelledData,
    trainings: ResumableTrainings,
    seeds: Sequence[int],
    fit: Callable[..., ProbeResult | HeadScores],
    name: str,
) -> None:
    """Fit to the features of that name what is not among the results yet, a seed each."""
    device = trainings.accelerator.device
    features, test_features = train.named[key].to(device), test.named[key].to(device)
    labels, test_labels = train.labels.to(device), test.labels.to(device)
    for seed in seeds:
        if (task := _task(name, key, seed)) in trainings.results:
            continue
        trainings.begin(task)
        result = fit(
            features,
            labels,
            test_features,
            test_labels,
            num_classes=data.num_classes,
            seed=seed,
            checkpointing=trainings,
        )
        trainings.finish(_plain(result))


def _plain(result: ProbeResult | HeadScores) -> dict[str, float]:
    """Return what is reported of a fit, as JSON."""
    if isinstance(result, HeadScores):
        return asdict(result)
    probe = result.probe
    return {"accuracy": result.accuracy, "chosen": probe.chosen, "held_out_accuracy": probe.tried[probe.chosen]}


def _further(results: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return what goes with the accuracies on test: what was chosen, or accuracies on train and agreements."""
    if "chosen" in results[0]:
        held_out = [round(result["held_out_accuracy"], 5) for result in results]
        return {"chosen": [result["chosen"] for result in results], "held_out_accuracy": held_out}
    agreements = {part: [result[key] for result in results] for part, key in AGREEMENTS.items()}
    return {
        "train": summarise([result["train_accuracy"] for result in results]),
        "one_hot_agreement": {part: round(math.fsum(values) / len(values), 5) for part, values in agreements.items()},
    }


AGREEMENTS = {"test": "agreement", "train": "train_agreement"}


def _probe_online(
    extractor: Extractor,
    data: LabelledData,
    trainings: ResumableTrainings,
    seeds: Sequence[int],
    recipe: Recipe,
    options: Mapping[str, Any],
    name: str,
    on_progress: OnProgress,
) -> dict[str, Any]:
    accelerator, shown = trainings.accelerator, trainings.stoppable(on_progress)
    tasks = {seed: f"{name}, seed {seed}" for seed in seeds}
    left = {seed: task for seed, task in tasks.items() if task not in trainings.results}
    if left:
        test = extract(extractor, data.test, data, accelerator, f"{name}, {data.split}", shown)
    for seed, task in left.items():
        heads = train_probe(
            extractor,
            data,
            recipe,
            accelerator,
            seed=seed,
            name=task,
            trainings=trainings,
            on_progress=on_progress,
            **options,
        )
        trainings.finish(score_heads(heads, test) if accelerator.is_main_process else {})
    by_seed = [trainings.results[task] for task in tasks.values()] if accelerator.is_main_process else []
    return {key: summarise([scores[key] for scores in by_seed]) for key in (by_seed[0] if by_seed else ())}
