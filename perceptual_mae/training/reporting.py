"""What a run reports at its start, to whom, and at its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceptual_mae.config import build
from perceptual_mae.config.layers import flatten
from perceptual_mae.training import messages, resume
from perceptual_mae.training.trainer import Trainer

if TYPE_CHECKING:
    from perceptual_mae.training.loop import Pretraining


def start_trackers(run: "Pretraining") -> None:
    """Begin to send numbers to the run's trackers."""
    tracking = run.config.tracking
    if tracking.trackers:
        flat = {key: str(value) for key, value in flatten(run.config.model_dump(mode="json"))}
        name = {"name": tracking.run_name or run.path.name}
        options = {tracker: name for tracker in tracking.trackers if tracker != "tensorboard"}
        run.accelerator.init_trackers(tracking.project, config=flat, init_kwargs=options)


def learning_rates(trainer: Trainer, step: int) -> dict[str, float]:
    """Return the learning rates of a step, by network."""
    rates = {"generator": trainer.learning_rate(step)}
    if trainer.adversary is not None:
        rates["discriminator"] = trainer.adversary.learning_rate(step)
    return {name: trainer.lr_scale * rate for name, rate in rates.items()}


def log_header(run: "Pretraining", resumed_from: Path | None) -> None:
    """Log what is about to run, where it goes on from, and what in it is known to go wrong."""
    adversary = run.trainer.adversary
    path_length = adversary.path_length if adversary is not None else None
    rate, _ = build.generator_adam(run.config.optimizer, run.config.training.batch_size, path_length)
    run.log(
        messages.header(
            run.path,
            run.timetable.total_steps,
            run.config.training,
            processes=run.accelerator.num_processes,
            device=str(run.accelerator.device),
            precision=run.accelerator.mixed_precision,
            learning_rate=rate,
        )
    )
    if resumed_from is not None:
        run.log(f"resumed from {resumed_from} after {run.step} steps")
    elif run.branch is not None:
        run.log(str(run.branch))
    elif run.origin is not None:
        run.log(str(run.origin))
    if run.discriminator_start is not None:
        run.log(str(run.discriminator_start))
    if (gone := run.lock.replaced) is not None:
        run.warn(f"{gone} ended without giving this folder back")
    for warning in [*resume.passed_over(run.passed_over, run.step), *messages.warnings_of(run.trainer)]:
        run.warn(warning)


def summary_of(run: "Pretraining", scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return what summary.json holds, with the scores of the held-out images."""
    return {
        **scores,
        "split": run.config.evaluation.split,
        "mask_seed": run.config.evaluation.seed,
        "ratio": build.final_ratio(run.config.masking),
        "uses_target_statistics": run.generator.norm_pix,
        "ema": run.trainer.ema is not None,
        "epochs": run.config.training.epochs,
        "steps": run.step,
        "images_seen": run.images_seen,
        "losses": run.last_losses,
        "unreadable_images": len(run.loader.unreadable),
    }
