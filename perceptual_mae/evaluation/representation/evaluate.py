"""A run's representation scored on labelled images: linear probes, the layer map, neighbours, the spectrum."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
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
    `checkpoints` are of `mae` and `paper`: SIGINT and SIGTERM then save and raise Interrupted, and the same call goes
    on, exactly; they are the caller's to discard when the report is written.
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
    if protocol in RECIPES:
        settings = decisive(report, data) | {"extractors": list(extractors)}
        with ResumableTrainings(accelerator, settings, checkpoints) as trainings:
            for name, extractor in extractors.items():
                scores[name] = _probe_online(
                    extractor, data, trainings, seeds, RECIPES[protocol], options, name, on_progress
                )
        return report | {"scores": scores}
    for name, extractor in extractors.items():
        train, test = both_splits(extractor, data, accelerator, name, on_progress)
        report |= {"train_images": len(train.labels), "test_images": len(test.labels)}  # those that could be read
        fit = partial(linear_probe if protocol == "cached" else train_and_score, **options)
        scores[name] = _probe_features(train, test, data, accelerator, seeds, fit, name, on_progress)
        spectra[name] = _spectra(train)
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
    train: Features,
    test: Features,
    data: LabelledData,
    accelerator: Accelerator,
    seeds: Sequence[int],
    fit: Callable[..., ProbeResult | HeadScores],
    name: str,
    on_progress: OnProgress,
) -> dict[str, Any]:
    device, scores, fits = accelerator.device, {}, 0
    labels, test_labels = train.labels.to(device), test.labels.to(device)
    for key in train.named:
        features, test_features = train.named[key].to(device), test.named[key].to(device)
        results = []
        for seed in seeds:
            on_progress(f"{name}, fitting", fits, len(train.named) * len(seeds))
            results.append(fit(features, labels, test_features, test_labels, num_classes=data.num_classes, seed=seed))
            fits += 1
        scores[key] = summarise([result.accuracy for result in results]) | _further(results)
    return scores


def _further(results: Sequence[ProbeResult | HeadScores]) -> dict[str, Any]:
    """Return what goes with the accuracies on test: what was chosen, or accuracies on train and agreements."""
    if probes := [result.probe for result in results if isinstance(result, ProbeResult)]:
        held_out = [round(probe.tried[probe.chosen], 5) for probe in probes]
        return {"chosen": [probe.chosen for probe in probes], "held_out_accuracy": held_out}
    heads = [result for result in results if isinstance(result, HeadScores)]
    agreements = {"test": [one.agreement for one in heads], "train": [one.train_agreement for one in heads]}
    return {
        "train": summarise([one.train_accuracy for one in heads]),
        "one_hot_agreement": {part: round(math.fsum(values) / len(values), 5) for part, values in agreements.items()},
    }


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
