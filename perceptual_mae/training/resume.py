"""What a run must have in common with the checkpoint it goes on from, and what is said of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceptual_mae.errors import UserError


def check_images(path: Path, metadata: Mapping[str, Any], count: int, sha256: str | None) -> None:
    """Raise UserError where a run has been trained on other images than those it is given now.

    sha256: that of the images' names and sizes (None: they are no files); checkpoints of version 0.1.0 have none.
    """
    remedy = "give it the same images, or start over with --fresh"
    before = metadata.get("training_images", count)
    if count != before:
        raise UserError(
            f"data.root: there are {count} training images, but the run in {path} has been trained on {before}; "
            f"{remedy}"
        )
    if metadata.get("training_images_sha256", sha256) != sha256:
        raise UserError(
            f"data.root: its {count} training images are not those that the run in {path} has been trained on (names "
            f"or sizes of files differ); {remedy}"
        )


def check_length(path: Path, step: int, total_steps: int, epochs: int) -> None:
    """Raise UserError where a run has taken more steps than it is asked for."""
    if step > total_steps:
        raise UserError(
            f"training.epochs: {epochs} epochs are {total_steps} steps, but the run in {path} has taken {step} "
            "already; ask for more epochs, or start over with --fresh"
        )


def passed_over(flaws: Mapping[str, str], step: int) -> list[str]:
    """Return a line for each checkpoint that a run goes on from before, by name what is wrong with it."""
    return [f"{name} is damaged ({flaw}): the run goes on from step {step} instead" for name, flaw in flaws.items()]
