"""The labelled images a representation is scored on: those of its own run, or others named on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptual_mae.config import build
from perceptual_mae.config.from_signature import imported_kinds
from perceptual_mae.config.layers import Merged, find_layer, list_recipes, read_yaml
from perceptual_mae.config.own_kinds import Trust
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.config.schema import DataSection
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.subsets import limited
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError

PREPROCESSING = ("image_size", "mean", "std", "eval_resize", "workers")
"""What another data set takes over from the run: the encoder was trained on images prepared like this."""


@dataclass(frozen=True)
class LabelledData:
    """Training and test images with labels, and how they are prepared.

    `name` is the data set's kind, or what --data named; `limit` says how many training images were asked for.
    """

    name: str
    train: ImageDataset
    test: ImageDataset
    split: str
    transform: EvaluationTransform
    workers: int
    limit: int | None = None
    test_limit: int | None = None

    @property
    def num_classes(self) -> int:
        return len(self.train.classes)


def with_data(config: RunConfig, data: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a run's configuration with the data of a layer or folder `data` (None: its own) and `data.*` overrides.

    A folder is read as `image_folder`. Image size, resizing, mean and deviation stay the run's. Raises UserError for
    names, keys and values that do not exist.
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
            raise UserError(
                f"the {part} images of {name or section.kind} carry no labels; name a labelled set: "
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
    )


def _data_layer(data: str) -> dict[str, Any]:
    shipped = {layer.name for layer in list_recipes()}
    if data not in shipped and Path(data).expanduser().is_dir():
        return {"data": {"kind": "image_folder", "root": data}}
    try:
        given = read_yaml(find_layer(data))
    except UserError as mistake:
        raise UserError(f"--data: {mistake}, or a folder of images") from mistake
    if not isinstance(given.get("data"), dict) or "kind" not in given["data"]:
        raise UserError(f"--data: {data} says nothing of data; name a recipe such as cifar10, or a folder of images")
    return given
