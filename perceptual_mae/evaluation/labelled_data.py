"""The labelled images a representation is scored on: those of its own run, or others named on the command line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perceptual_mae.config import build
from perceptual_mae.config.from_signature import imported_kinds
from perceptual_mae.config.layers import Merged, find_layer, list_recipes, read_yaml
from perceptual_mae.config.own_kinds import Trust
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.config.schema import DataSection
from perceptual_mae.data import kind_of_folder
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.subsets import limited
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError

PREPROCESSING = ("image_size", "mean", "std", "eval_resize", "workers")
"""What another data set takes over from the run: the encoder was trained on images prepared like this."""

READING = ("root", "workers", "max_pixels", "max_unreadable", "cache", "shard_cache")
"""Keys of the data that say where images are and how they are read, not which they are."""


FEW_IMAGES = 100
"""Below so many test images, the 95 % interval of an accuracy is wider than 19 points at its widest."""
NORMAL_95 = 1.959964
"""Between minus and plus so many standard deviations lie 95 % of a normal distribution."""


@dataclass(frozen=True)
class LabelledData:
    """Training and test images with labels, and how they are prepared.

    `name` is the data set's kind, or what --data named; `limit` says how many training images were asked for; `section`
    has the keys of the data that decide which images these are and what is in them.
    """

    name: str
    train: ImageDataset
    test: ImageDataset
    split: str
    transform: EvaluationTransform
    workers: int
    limit: int | None = None
    test_limit: int | None = None
    section: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.train.classes)

    @property
    def more_images(self) -> str:
        """What to change so that more images are scored."""
        return "raise --test-limit" if self.test_limit is not None else more_images(self.test)


def with_data(config: RunConfig, data: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a run's configuration with the data of a layer or folder `data` (None: its own) and `data.*` overrides.

    A folder is read as `shards` where it holds some, else as `image_folder`. Image size, resizing, mean and deviation
    stay the run's. Raises UserError for names, keys and values that do not exist.
    """
    if data is None and not overrides:
        return config
    own: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    merged = Merged(values=dict(own))
    if data is not None:
        given = _data_layer(data)
        kept = {key: own["data"][key] for key in PREPROCESSING}
        merged.values["data"] = {}
        merged.merge({"data": {**given["data"], **kept}}, data)
        if "split" in given.get("evaluation", {}):
            merged.merge({"evaluation": {"split": given["evaluation"]["split"]}}, data)
    for override in overrides:
        if "=" not in override or not override.startswith("data."):
            raise UserError(f"{override}: only keys of the data can be set here, as data.root=~/images")
        merged.override(override)
    trust = Trust(merged.typed_kinds | imported_kinds(config))
    return parse_config(merged.values, merged.origins, origin="the run's config.yaml", trust=trust)


def labelled_part(section: DataSection) -> DataSection:
    """Return the section of a data set's labelled part, where it has one apart from the rest (STL-10), or itself."""
    if "labelled" not in section.option_fields:
        return section
    return section.model_copy(update={section.option_fields["labelled"]: True})


def open_labelled(
    config: RunConfig,
    *,
    name: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
) -> LabelledData:
    """Return the training images and those of `split` (default: the configuration's evaluation.split), all labelled.

    A limit takes the first images of a fixed shuffle, the same for every run and seed: many sets are sorted by class.
    A set that has a labelled part (STL-10) gives that. Raises UserError where labels or images are missing.
    """
    section, split = labelled_part(config.data), split or config.evaluation.split
    train, test = section.build("train"), section.build(split)
    for part, dataset in (("train", train), (split, test)):
        if not dataset.classes:
            stray: Path | None = getattr(dataset, "stray_image", None)
            why = "" if stray is None else f", for {stray} is next to the class folders: move it into one, or away"
            raise UserError(
                f"the {part} images of {name or section.kind} carry no labels{why}; name a labelled set: "
                "--data LAYER (such as cifar10) or --data FOLDER with a subfolder for each class"
            )
    if train.classes != test.classes:
        raise UserError(f"the classes of train and {split} differ; give both the same class folders")
    return LabelledData(
        name or section.kind,
        limited(train, limit),
        limited(test, test_limit),
        split,
        build.build_evaluation_transform(config.data),
        section.workers,
        limit,
        test_limit,
        section.model_dump(mode="json", by_alias=True, exclude=set(READING)),
    )


def more_images(dataset: ImageDataset) -> str:
    """Return what to change so that a split has more images."""
    advice: str = getattr(dataset, "more_images", "score more images")
    return advice


def accuracy_interval(accuracy: float, num_images: int) -> tuple[float, float]:
    """Return the 95 % interval, in [0, 1], of an accuracy on so many images (Wilson 1927)."""
    spread = NORMAL_95**2 / num_images
    centre = (accuracy + spread / 2) / (1 + spread)
    half = NORMAL_95 / (1 + spread) * math.sqrt((accuracy * (1 - accuracy) + spread / 4) / num_images)
    return max(0.0, centre - half), min(1.0, centre + half)


def few_images_warning(num_images: int, advice: str, accuracy: float = 0.5) -> str | None:
    """Return what an accuracy on so many test images is worth, and what to do; None from `FEW_IMAGES` on."""
    if not 0 < num_images < FEW_IMAGES:
        return None
    low, high = accuracy_interval(accuracy, num_images)
    return (
        f"{num_images} test images tell little: the 95 % interval of {100 * accuracy:.2f} % is {100 * low:.1f} to "
        f"{100 * high:.1f} %; {advice}"
    )


def _data_layer(data: str) -> dict[str, Any]:
    shipped = {layer.name for layer in list_recipes()}
    if data not in shipped and Path(data).expanduser().is_dir():
        return {"data": {"kind": kind_of_folder(Path(data).expanduser()), "root": data}}
    try:
        given = read_yaml(find_layer(data))
    except UserError as mistake:
        raise UserError(f"--data: {mistake}, or a folder of images") from mistake
    if not isinstance(given.get("data"), dict) or "kind" not in given["data"]:
        raise UserError(f"--data: {data} says nothing of data; name a recipe such as cifar10, or a folder of images")
    return given
