"""What the commands that score a representation share: options, and where the scores go."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.open_run import Opened
from perceptual_mae.files import write_json


def check_out(out: Path | None) -> None:
    """Refuse a place that the scores cannot be written to, before they are computed."""
    if out is not None and (out.is_dir() or out.suffix != ".json"):
        raise UserError(f"--out: {out} is no file that ends in .json; name one")


def finish(
    opened: Opened,
    report: Mapping[str, Any],
    table: Callable[[Mapping[str, Any]], str],
    path: Path,
    *,
    then: str | None = None,
) -> None:
    """Write the scores, print their table and say what to do `then`; the main process alone does."""
    if opened.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
        console = Console(soft_wrap=True)
        closing = [f"written to {path}", *([then] if then else [])]
        for line in (headline(report), "", table(report), "", *closing):
            console.print(line, highlight=False, markup=False)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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


def numbers(text: str, option: str, *, least: int) -> tuple[int, ...]:
    """Return the numbers of a list such as 0,1,2; each one once and none below `least`."""
    try:
        values = tuple(int(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < least or len(set(values)) < len(values):
        raise UserError(f"{option} is {text!r}; give different whole numbers from {least} on, such as 10,20,100")
    return values
