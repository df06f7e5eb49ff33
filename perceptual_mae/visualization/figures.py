"""Figures of matplotlib, and PNG files written complete or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of that many inches, whose parts make room for each other."""
    from matplotlib.figure import Figure  # a second to import, and only figures need it

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    write_png(path, lambda beside: figure.savefig(beside, format="png"))


def write_png(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a picture beside the path, and give it its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
