"""The images whose reconstructions are scored: those of the run's own split, or others; labels are not needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptual_mae.config import build
from perceptual_mae.config.errors import RejectedError
from perceptual_mae.config.from_signature import class_of_kind, imported_kinds
from perceptual_mae.config.layers import list_recipes
from perceptual_mae.config.own_kinds import EVERYTHING, Trust
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.data import FOLDER_KINDS
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.image_tree import find_folder
from perceptual_mae.data.splits import FOLDER_NAMES
from perceptual_mae.data.subsets import random_subset
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.labelled_data import with_data
from perceptual_mae.masking import MASKINGS


@dataclass(frozen=True)
class HeldOut:
    """Images to reconstruct, those at `indices` of the data set, and how they are prepared.

    `name` is the data set's kind, or what --data named; `limit` says how many were asked for.
    """

    name: str
    dataset: ImageDataset
    indices: Sequence[int]
    split: str
    transform: EvaluationTransform
    workers: int
    limit: int | None = None


def open_held_out(
    config: RunConfig, *, name: str | None = None, split: str | None = None, limit: int | None = None
) -> HeldOut:
    """Return the images of `split` (default: the configuration's evaluation.split), labelled or not.

    A limit takes the first images of a fixed shuffle, the same for every run and seed. Raises UserError where images
    are missing.
    """
    section, split = config.data, split or config.evaluation.split
    dataset = section.build(split)
    return HeldOut(
        name or section.kind,
        dataset,
        random_subset(len(dataset), limit),
        split,
        build.build_evaluation_transform(config.data),
        section.workers,
        limit,
    )


def with_images(config: RunConfig, data: str | None, overrides: Sequence[str], split: str | None) -> RunConfig:
    """Return a run's configuration with other images (see `with_data`).

    A folder named by `data` that has no folder for the split counts whole: nobody asked for a share of it. The folder
    the run was trained on keeps its split, and so does one whose split an override names.
    """
    changed = with_data(config, data, overrides)
    split = split or changed.evaluation.split
    if data is None or changed.data.kind not in FOLDER_KINDS or data in {layer.name for layer in list_recipes()}:
        return changed
    root = Path(data).expanduser()
    own = config.data.options().get("root") if config.data.kind in FOLDER_KINDS else None
    is_own = own is not None and Path(own).expanduser().resolve() == root.resolve()
    split_keys = (f"data.{split}=", "data.holdout=", "data.split_fractions=", "data.root=")
    split_is_set = any(override.startswith(split_keys) for override in overrides)
    if is_own or split_is_set or not root.is_dir() or find_folder(root, FOLDER_NAMES[split]):
        return changed
    return with_data(config, data, [*overrides, f"data.{split}=."])


def with_masking(config: RunConfig, kind: str | None) -> RunConfig:
    """Return the configuration with another kind of mask and its own defaults (None: the run's, options and all)."""
    if kind is None or kind == config.masking.kind:
        return config
    try:
        class_of_kind(kind, MASKINGS, "masking", EVERYTHING)  # it was typed
    except RejectedError as rejected:
        raise UserError(f"--mask: {rejected.mistakes[0].message}") from rejected
    values: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    values["masking"] = {"kind": kind, "ratio": values["masking"]["ratio"]}
    trust = Trust(imported_kinds(config) | {kind})
    return parse_config(values, {"masking": f"--mask {kind}"}, origin="the run's config.yaml", trust=trust)
