"""What a run must have in common with the checkpoint it goes on from, and what is said of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceptual_mae.data.dataset import ImageDataset, files_sha256
from perceptual_mae.errors import UserError
from perceptual_mae.training.image_check import folder_of


def check_images(path: Path, metadata: Mapping[str, Any], dataset: ImageDataset, sha256: str | None) -> None:
    """Raise UserError where a run has been trained on other images than the data set it is given now.

    sha256: that of the images' names and sizes (None: they are no files); checkpoints of version 0.1.0 have none. Files
    that were unreadable may have been repaired since: their sizes are those of then, and their names are asked for.
    """
    sizes = metadata.get("unreadable_sizes", {})
    count, before = len(dataset), metadata.get("training_images", len(dataset))
    known = metadata.get("training_images_sha256", sha256)
    if count == before and known in (sha256, files_sha256(dataset, sizes) if sizes else sha256):
        return
    folder = folder_of(dataset)
    gone = [folder / name for name in sizes if not (folder / name).exists()] if folder is not None else []
    if gone:
        remedy = (
            f"{len(gone)} files that it could not read are gone, {', '.join(map(str, gone[:NAMED]))}"
            f"{', ...' if len(gone) > NAMED else ''}: put them back (empty files of these names will do), or start "
            "over with --fresh"
        )
    else:
        remedy = "give it the same images, or start over with --fresh"
    if count != before:
        what = f"there are {count} training images, but the run in {path} has been trained on {before}"
    else:
        what = (
            f"its {count} training images are not those that the run in {path} has been trained on (names or sizes of "
            "files differ)"
        )
    raise UserError(f"data.root: {what}; {remedy}")


NAMED = 5
"""So many files that are gone are named in a message."""


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
