"""A run's reconstructions scored on held-out images, with everything the scores depend on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from perceptual_mae.config import build
from perceptual_mae.config.build import user_mistakes
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.evaluation.metrics.protocol import Setting
from perceptual_mae.evaluation.metrics.selection import choose, find_weights, names_of
from perceptual_mae.evaluation.open_run import open_generator, uses_ema
from perceptual_mae.evaluation.reconstruction.best_and_worst import BestAndWorst
from perceptual_mae.evaluation.reconstruction.data import HeldOut
from perceptual_mae.evaluation.reconstruction.per_image import ImageTable
from perceptual_mae.evaluation.reconstruction.scoring import score_reconstructions
from perceptual_mae.evaluation.representation.features import fingerprint_of
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.masking import num_hidden
from perceptual_mae.progress import OnProgress, no_progress
from perceptual_mae.run.folder import version_of
from perceptual_mae.run.run import Run

NOT_OF_PIXELS = {"tokens", "latent", "mask", "grid"}
"""Inputs of a term that say nothing of the reconstruction."""

VERSIONS = ("perceptual-mae", "torch", "torchvision")


@dataclass(frozen=True)
class Evaluation:
    """The report, the scores of each image, and the pictures; only the main process has more than a report's frame."""

    report: dict[str, Any]
    table: ImageTable | None
    best_and_worst: BestAndWorst


def evaluate_run(
    run: Run,
    data: HeldOut,
    accelerator: Accelerator,
    *,
    config: RunConfig | None = None,
    metrics: str | None = None,
    require: Sequence[str] = (),
    features: Sequence[str] = (),
    ratio: float | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    baselines: bool = False,
    ema: bool | None = None,
    trust_code: bool = False,
    on_progress: OnProgress = no_progress,
) -> Evaluation:
    """Reconstruct `data` once, under masks that depend on the mask seed and each image's place in the data set alone.

    `config` says which masking (None: the run's own configuration), `ratio` and `seed` default to the run's last ratio
    and evaluation.seed, `metrics` is a comma list (None: all), `features` names the networks of FID, KID and Inception
    Score (none: Inception), `trust_code` lets a file of theirs that is a program run. A score that cannot be had is
    reported as unavailable with the reason; UserError, before the pass, where it is required.
    """
    config = config or run.config
    ratio = build.final_ratio(config.masking) if ratio is None else ratio
    seed = config.evaluation.seed if seed is None else seed
    names = names_of(metrics)
    generator = open_generator(run, accelerator, ema)
    hidden = user_mistakes(lambda: num_hidden(generator.grid[0] * generator.grid[1], ratio))
    setting = Setting(
        generator.image_size,
        generator.channels,
        accelerator.device,
        len(data.indices),
        find_weights,
        generator.patch_size,
        seed,
        tuple(features),
        trust_code,
    )
    chosen = choose(names, require, setting)
    best_and_worst = BestAndWorst()
    report: dict[str, Any] = {"kind": "evaluate", **_describe(run, generator, accelerator, uses_ema(run, ema))}
    report |= _describe_images(data)
    masking = config.masking.of_held_out_images
    report["mask"] = {
        "kind": masking.kind,
        "options": masking.options(),
        "ratio": ratio,
        "seed": seed,
        "grid": list(generator.grid),
        "hidden_patches": hidden,
    }
    masks = build.build_fixed_masks(config.masking, generator.grid, seed, ratio)
    scores, table = score_reconstructions(
        generator,
        data,
        lambda batch: user_mistakes(lambda: masks(batch)),
        accelerator,
        chosen,
        batch_size=batch_size or config.evaluation.batch_size,
        patch_size=generator.patch_size,
        baselines=baselines,
        accumulators=[best_and_worst],
        on_progress=on_progress,
    )
    report["versions"] = {name: version_of(name) for name in VERSIONS} | chosen.versions
    return Evaluation(report | scores, table, best_and_worst)


def learns_visible_pixels(config: RunConfig) -> bool:
    """Return whether some term of the run's objective reads visible pixels; where none does, these come out as noise.

    Plain MAE's loss is taken over hidden patches alone.
    """
    return any(
        section.options().get("region") != "masked" and not NOT_OF_PIXELS.issuperset(config.losses.term(name).reads)
        for name, section in config.losses.items()
    )


def _describe(run: Run, generator: MaskedAutoencoder, accelerator: Accelerator, ema: bool) -> dict[str, Any]:
    return {
        "run": run.path.absolute().name,
        "step": run.step,
        "ema": ema,
        "generator_sha256": fingerprint_of(generator.state_dict()),
        "precision": accelerator.mixed_precision,
        "uses_target_statistics": generator.norm_pix,
        "learns_visible_pixels": learns_visible_pixels(run.config),
    }


def _describe_images(data: HeldOut) -> dict[str, Any]:
    height, width = data.transform.size
    return {
        "data": data.name,
        "split": data.split,
        "limit": data.limit,
        "transform": {"image_size": [height, width], "resize": data.transform.resize, "crop": "center"},
    }
