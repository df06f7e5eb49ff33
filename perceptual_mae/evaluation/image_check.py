"""The headers of image files that are about to be read: checked in the main process for all, bad ones in one list."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from accelerate import PartialState

from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.unreadable import LIST_NAME, ImageCheck, check_images, read_list, write_list
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.processes import as_main_process
from perceptual_mae.progress import OnProgress, ProgressBar


def check_and_list(
    datasets: Mapping[str, ImageDataset],
    listed: Path,
    on_progress: OnProgress,
    *,
    may_remove: bool = False,
    is_own: bool = True,
) -> ImageCheck:
    """Check all image files of data sets, given by split, and write the unreadable ones to the text file `listed`.

    Files that it names already are read whole. An older list is replaced, and there is none where all are sound.
    may_remove: nothing has been learnt from these images yet. is_own: the folder of the list is this run's to write in,
    so that an OSError is raised; in somebody else's there is a list where there can be one.
    """
    check = ImageCheck()
    if PartialState().is_main_process:
        check = check_images(datasets, on_progress, suspects=read_list(listed), may_remove=may_remove)
        with suppress(*([] if is_own else [OSError])):
            write_list(listed, check.all_unreadable)
        if check.refusal is not None and listed.exists():
            check.refusal += f"; all are listed in {listed}"
    return as_main_process(check)


def check_scored_images(run: Path, datasets: Mapping[str, ImageDataset], on_progress: ProgressBar) -> None:
    """Check the images that a command is about to score a run on, before the first of them is decoded.

    The list is `evaluation/unreadable.txt` of the run. Raises UserError where there are too many to score.
    """
    check = check_and_list(datasets, run / "evaluation" / LIST_NAME, on_progress, is_own=False)
    if check.refusal is not None:
        raise UserError(check.refusal)
    for warning in check.warnings if PartialState().is_main_process else ():
        on_progress.log(f"warning: {warning}")
