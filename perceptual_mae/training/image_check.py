"""The image files of a run: their headers are checked before the first step, and what cannot be read is listed."""

import os
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from perceptual_mae.data.dataset import ImageDataset, file_name, file_path, size_of
from perceptual_mae.data.loading import TrainLoader
from perceptual_mae.data.pixel_cache import CachedImages
from perceptual_mae.data.unreadable import LIST_NAME, read_list
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.image_check import check_and_list
from perceptual_mae.evaluation.labelled_data import few_images_warning, more_images
from perceptual_mae.evaluation.processes import as_main_process
from perceptual_mae.evaluation.reconstruction.data import HeldOut
from perceptual_mae.evaluation.representation.online import OnlineData
from perceptual_mae.progress import OnProgress


def check_run_images(
    path: Path,
    loader: TrainLoader,
    train: ImageDataset,
    held_out: HeldOut,
    online: OnlineData,
    on_progress: OnProgress,
    log: Callable[[str], None],
    warn: Callable[[str], None],
    *,
    may_remove: bool,
) -> None:
    """Check all image files of a run that is about to train in the folder `path`, in the main process for all.

    Unreadable files are written to `unreadable.txt` of the folder, counted by `loader` from the start, and those that
    it meets later are appended. Files that an earlier start of the run has listed are read whole. may_remove: nothing
    has been learnt from these images yet. Raises UserError where there are too many to train.
    """
    datasets, listed = {"train": train, held_out.split: held_out.dataset}, path / LIST_NAME
    check = check_and_list(datasets, listed, on_progress, may_remove=may_remove)
    for line in check.lines:
        log(line)
    for warning in check.warnings:
        warn(warning)
    if online.train is not None:
        is_limited = len(held_out.indices) < len(held_out.dataset)
        advice = "raise evaluation.limit" if is_limited else more_images(held_out.dataset)
        if few := few_images_warning(len(held_out.indices), advice):
            warn(f"probe and kNN while training: {few}")
    if check.refusal is not None:
        raise UserError(check.refusal)
    loader.list_unreadable(listed, check.unreadable.get("train", {}))
    if isinstance(train, CachedImages):
        fill_cache(train, loader.workers, on_progress, warn)


def fill_cache(
    dataset: CachedImages, workers: int, on_progress: OnProgress, warn: Callable[[str], None] = lambda message: None
) -> None:
    """Decode a data set's images into its cache in the main process; all processes that see the file then read it.

    Where it cannot be written, images are decoded as without a cache, and a warning says so. Raises UserError, in all
    processes, where they are more than the cache may hold.
    """
    outcome: Path | UserError | str | None = None
    if PartialState().is_main_process:
        try:
            outcome = dataset.fill(workers, on_progress)
        except UserError as refusal:
            outcome = refusal
        except OSError as failure:
            outcome = failure.strerror or str(failure)
    outcome = as_main_process(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    if isinstance(outcome, str):
        warn(f"data.cache could not be written ({outcome}): images are decoded whenever they are read")
    elif outcome is not None and outcome.exists():
        dataset.open(outcome)


class UnreadableFiles:
    """The training files that the list of a run's folder names, with the sizes they had when they were first listed.

    A run that goes on may find them repaired: their sizes may differ, those of others may not.
    """

    def __init__(self, path: Path, dataset: ImageDataset) -> None:
        self._list, self._folder = path / LIST_NAME, folder_of(dataset)
        self._sizes: dict[str, int | None] = {}

    def sizes(self) -> dict[str, int | None]:
        """Return the size of each by its name in the data set; None where it has none (a broken link)."""
        named = read_list(self._list) if self._folder is not None else []
        names = [name.removeprefix(f"{self._folder}{os.sep}") for name in named]
        self._sizes = {
            name: self._sizes[name] if name in self._sizes else size_of(Path(path))
            for name, path in zip(names, named, strict=True)
        }
        return self._sizes


def folder_of(dataset: ImageDataset) -> Path | None:
    """Return the folder that names of a data set's files are relative to, or None where it has no such files."""
    path, name = file_path(dataset, 0), file_name(dataset, 0)
    if path is None or name is None or not str(path).endswith(name):
        return None
    return Path(str(path)[: -len(name)])
