"""How many images a study's trainings and scores see, and the words of a command that decide it."""

from collections.abc import Sequence
from functools import cache

from perceptual_mae.config.parsing import DataSection, load_config
from perceptual_mae.errors import UserError

SHOWN = 1_000
"""Held-out images on which a training scores itself at its end, at most: the study's own scores come from evaluate."""
POINTS = 16
"""Of a loss curve, at least."""


@cache
def images_of(words: tuple[str, ...]) -> int:
    """Return how many images a training shows its network. Raises UserError for mistakes, and where images are not."""
    config = load_config(words)
    images = size_of(config.data, "train")
    return config.training.epochs * (config.training.epoch_images or images)


def at_the_end(test_images: int) -> list[str]:
    """Return the overrides of a training that scores itself at its end alone."""
    return ["evaluation.every=0", f"evaluation.limit={min(SHOWN, test_images)}"]


def log_often(words: Sequence[str], images: int) -> list[str]:
    """Return the override that gives a training on so few `images` a curve and no mere dot; it waits at each point."""
    training = load_config(words).training
    every = max(1, images // training.batch_size // POINTS)
    return [f"training.log_every={every}"] if every < training.log_every else []


@cache
def data_of(layer: str, *overrides: str) -> DataSection:
    """Return the images that a recipe and the overrides of them name."""
    return load_config([layer, "mse", *(each for each in overrides if each.startswith("data."))]).data


def keep_images(words: Sequence[str], wanted: int) -> list[str]:
    """Return the override that leaves `wanted` training images of a data set that can hold some back; 0: all."""
    if not wanted:
        return []
    if any(word.startswith("data.val_images=") for word in words):
        raise UserError("--set data.val_images: --images decides how many are held back; give --images 0 to set it")
    data = load_config(words).data
    images = size_of(data, "train")
    if wanted > images:
        raise UserError(f"--images {wanted}: {data.kind} has {images} training images; ask for fewer, or 0 for all")
    if not hasattr(data, "val_images"):
        raise UserError(f"--images {wanted}: {data.kind} cannot hold images back by number; give --images 0 for all")
    return [f"data.val_images={data.val_images + images - wanted}"] if images > wanted else []


def refuse_more_labels(images: int, wanted: dict[str, int]) -> None:
    """Raise UserError for the first option that asks for more labels than `images` were kept (0: all)."""
    for flag, labels in wanted.items():
        if 0 < images < labels:
            raise UserError(f"{flag} {labels}: only {images} training images are kept (--images); ask for fewer")


@cache
def size_of(data: DataSection, split: str) -> int:
    """Return the number of images of a split."""
    return len(data.build(split))
