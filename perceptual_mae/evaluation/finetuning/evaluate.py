"""A run's encoder fine-tuned on labelled images, several seeds, with all that the accuracies stand on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from perceptual_mae.data.subsets import Selection, class_balanced_subset
from perceptual_mae.evaluation.finetuning.classifier import Classifier, fresh_encoder, save_classifier
from perceptual_mae.evaluation.finetuning.recipes import FinetuneRecipe
from perceptual_mae.evaluation.finetuning.training import check_batch, score_classifier, train_classifier
from perceptual_mae.evaluation.labelled_data import LabelledData
from perceptual_mae.evaluation.open_run import describe, uses_ema
from perceptual_mae.evaluation.representation.evaluate import summarise
from perceptual_mae.evaluation.resumption import Checkpoints, ResumableTrainings, decisive
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.run import Run


def finetune_run(
    run: Run,
    data: LabelledData,
    accelerator: Accelerator,
    recipe: FinetuneRecipe,
    *,
    seeds: Sequence[int] = (0,),
    fraction: float | None = None,
    from_scratch: bool = False,
    ema: bool | None = None,
    save: Path | None = None,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Return accuracies in [0, 1] of a run's encoder, trained end to end with a new head, and what they stand on.

    A seed decides the head, the order and the draws, with `fraction` which images of each class are learnt from, and
    `from_scratch` the encoder's weights, which then are the run's in shape only. Nothing is chosen on the scored
    images: the last epoch counts. `save` is a folder for the network, with several seeds one below it for each. With
    `checkpoints` SIGINT and SIGTERM save and raise Interrupted, and the same call goes on, exactly; they are the
    caller's to discard when the report is written.
    """
    by_seed = {seed: _share(data, fraction, seed) for seed in seeds}
    check_batch(recipe, min(len(part.train) for part in by_seed.values()), accelerator.num_processes)
    first = _encoder(run, seeds[0], from_scratch, ema)
    described = describe(run, first, by_seed[seeds[0]], accelerator, ema=uses_ema(run, ema) and not from_scratch)
    if from_scratch:
        described["encoder_tensors"] = {"loaded": 0, "missing": 0}
    report: dict[str, Any] = {
        "kind": "finetune",
        **described,
        "from_scratch": from_scratch,
        "fraction": fraction,
        "seeds": list(seeds),
        "recipe": recipe.model_dump(mode="json") | {"peak_lr": recipe.peak_rate},
        "processes": accelerator.num_processes,
    }
    settings = decisive(report, data) | {"save": None if save is None else str(save.absolute())}
    with ResumableTrainings(accelerator, settings, checkpoints) as trainings:
        for seed, part in by_seed.items():
            name = f"seed {seed}"
            if name in trainings.results:
                continue
            classifier = Classifier(
                _encoder(run, seed, from_scratch, ema), data.num_classes, pool=recipe.pool, seed=seed
            )
            curve = train_classifier(
                classifier,
                part,
                recipe,
                accelerator,
                seed=seed,
                name=name,
                trainings=trainings,
                on_progress=on_progress,
            )
            shown = trainings.stoppable(on_progress)
            score = score_classifier(classifier, data, accelerator, name=f"{name}, {data.split}", on_progress=shown)
            if save is not None and accelerator.is_main_process:
                folder = save if len(by_seed) == 1 else save / f"seed_{seed}"
                metadata = {
                    "seed": seed,
                    "top1": score["top1"],
                    "transform": report["transform"],
                    "run": run.path.name,
                }
                save_classifier(folder, classifier, run.config, data.train.classes, metadata)
            trainings.finish({"curve": curve, "score": score})
    results = {str(seed): trainings.results[f"seed {seed}"] for seed in by_seed}
    accuracies = [result["score"] for result in results.values()]
    report["test_images"] = accuracies[0]["images"]  # those that could be read
    scores = {key: summarise([score[key] for score in accuracies]) for key in ("top1", "top5") if key in accuracies[0]}
    return report | {"scores": scores, "curves": {seed: result["curve"] for seed, result in results.items()}}


def _share(data: LabelledData, fraction: float | None, seed: int) -> LabelledData:
    if fraction is None:
        return data
    return replace(data, train=Selection(data.train, class_balanced_subset(data.train, fraction, seed)))


def _encoder(run: Run, seed: int, from_scratch: bool, ema: bool | None) -> Encoder:
    """Return the run's encoder, every tensor of it loaded or an error, or one of its shape that has seen nothing."""
    return fresh_encoder(run.config, seed) if from_scratch else run.generator(ema=ema).encoder
