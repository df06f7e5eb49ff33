"""What several commands print and write: lines, tables, score files."""

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from perceptual_mae.cli.options import Scored
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_json

if TYPE_CHECKING:
    from perceptual_mae.evaluation.open_run import EvaluationRun
    from perceptual_mae.evaluation.resumption import Checkpoints
    from perceptual_mae.progress import ProgressBar


def print_lines(*lines: str, to_stderr: bool = False) -> None:
    """Print lines as they are: unbroken, and without colours."""
    from rich.console import Console

    console = Console(stderr=to_stderr, soft_wrap=True)
    for line in lines:
        console.print(line, highlight=False, markup=False)


def print_version(wanted: bool) -> None:
    """Print the versions of this package, Python and PyTorch and stop; PyTorch is not imported for it."""
    if wanted:
        versions = {name: _version(name) for name in ("perceptual-mae", "torch")}
        python = ".".join(map(str, sys.version_info[:3]))
        typer.echo(f"perceptual-mae {versions['perceptual-mae']} (Python {python}, PyTorch {versions['torch']})")
        raise typer.Exit


def check_out(out: Path | None, suffixes: Sequence[str] = (".json",)) -> None:
    """Refuse a path that nothing can be written to, before that is computed; a folder that is not there is made."""
    if out is None:
        return
    if out.is_dir() or out.suffix not in suffixes:
        raise UserError(f"--out: {out} is no file that ends in {' or '.join(suffixes)}; name one")
    nearest = next(parent for parent in out.absolute().parents if os.path.lexists(parent))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "cannot be written to" if nearest.is_dir() else "is not a folder"
        raise UserError(f"--out: {out} cannot be written, for {nearest} {why}; name another place")


@contextmanager
def showing_progress(*, is_main_process: bool) -> Iterator["ProgressBar"]:
    """Show how far the work is, on the main process alone; leave with 130 where it was stopped."""
    from perceptual_mae.progress import ProgressBar
    from perceptual_mae.run.signals import EXIT_CODE, Interrupted

    try:
        with ProgressBar(quiet=not is_main_process) as on_progress:
            yield on_progress
    except Interrupted as stopped:
        if is_main_process:
            print_lines(str(stopped), to_stderr=True)
        raise typer.Exit(EXIT_CODE) from None


@contextmanager
def scoring(scored: Scored) -> Iterator[tuple["EvaluationRun", "ProgressBar"]]:
    """Open the run and the images to score, and show how far the scoring is; leave with 130 where it was stopped."""
    from perceptual_mae.evaluation.image_check import check_scored_images
    from perceptual_mae.evaluation.open_run import open_run

    evaluation = open_run(**vars(scored))
    with showing_progress(is_main_process=evaluation.is_main_process) as on_progress:
        images = {"training images": evaluation.data.train, evaluation.data.split: evaluation.data.test}
        check_scored_images(evaluation.run.path, images, on_progress)
        yield evaluation, on_progress


def write_scores(
    evaluation: "EvaluationRun",
    report: Mapping[str, Any],
    table: Callable[[Mapping[str, Any]], str],
    path: Path,
    *,
    next_step: str | None = None,
    checkpoints: "Checkpoints | None" = None,
) -> None:
    """Write the scores of a representation, print their table and the next step; the main process alone does.

    checkpoints: of the trainings that were scored; they are not needed any more.
    """
    from perceptual_mae.evaluation.labelled_data import few_images_warning

    if evaluation.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
        if checkpoints is not None:
            checkpoints.discard()
        closing: Iterable[str] = (f"written to {path}", *([next_step] if next_step else []))
        accuracy = first_accuracy(report["scores"])
        if warning := few_images_warning(report["test_images"], evaluation.data.more_images, accuracy):
            print_lines(f"warning: {warning}", to_stderr=True)
        print_lines(headline(report), "", table(report), "", *closing)


def leave_processes() -> None:
    """Part from the other processes of a launcher, where there are any, and end the threads that served them.

    A network that was trained by several processes is part of a cycle and keeps the group's threads: one that still
    runs while the interpreter ends may abort the process, after all its work was done.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if "RANK" in os.environ:
        gc.collect()


def percent(share: float | None, std: float | None = None) -> str:
    """Return a share in [0, 1] in %, with " ± " and its deviation where there is one; "-" for none."""
    if share is None:
        return "-"
    return f"{100 * share:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def first_accuracy(scores: Mapping[str, Any]) -> float:
    """Return the first accuracy, in [0, 1], of a table of scores: a number, or the mean over seeds."""
    first = next(iter(scores.values()))
    if not isinstance(first, Mapping):
        return float(first)
    return float(first["accuracy"]) if "accuracy" in first else first_accuracy(first)


def headline(report: Mapping[str, Any]) -> str:
    """Say what was scored: weights, images and how they were prepared."""
    transform = report["transform"]
    resize = f"resized to {transform['resize']}, " if transform["resize"] else ""
    height, width = transform["image_size"]
    if report.get("from_scratch"):
        subject = f"{report['run']}: an encoder of its shape, from scratch"
    else:
        subject = (
            f"{report['run']}, step {report['step']}{' (averaged weights)' if report['ema'] else ''}: encoder "
            f"{report['encoder_sha256'][:12]}, {report['encoder_tensors']['loaded']} tensors loaded, none missing"
        )
    return (
        f"{subject}; {report['data']}, {report['train_images']} train and {report['test_images']} {report['split']} "
        f"images of {report['classes']} classes, {resize}{height}x{width}"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
