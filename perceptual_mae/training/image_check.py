"""The image files of a run: their headers are checked before the first step, and what cannot be read is listed."""

from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.loading import TrainLoader
from perceptual_mae.data.unreadable import LIST_NAME, ImageCheck, check_images, write_list
from perceptual_mae.errors import UserError
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
) -> None:
    """Check all image files of a run that is about to train in the folder `path`, in the main process for all.

    Unreadable files are written to `unreadable.txt` of the folder, counted by `loader` from the start, and those that
    it meets later are appended. Raises UserError where there are too many to train.
    """
    is_main_process = PartialState().is_main_process
    datasets = {"train": train, held_out.split: held_out.dataset}
    check: ImageCheck = as_main_process(check_images(datasets, on_progress) if is_main_process else ImageCheck())
    for line in check.lines:
        log(line)
    for warning in check.warnings:
        warn(warning)
    if online.train is not None:
        is_limited = len(held_out.indices) < len(held_out.dataset)
        advice = "raise evaluation.limit" if is_limited else more_images(held_out.dataset)
        if few := few_images_warning(len(held_out.indices), advice):
            warn(f"probe and kNN while training: {few}")
    listed = path / LIST_NAME
    if is_main_process and (check.all_unreadable or listed.exists()):
        write_list(path, check.all_unreadable)
    if check.refusal is not None:
        raise UserError(f"{check.refusal}; all are listed in {listed}")
    loader.list_unreadable(listed, check.unreadable.get("train", {}))
