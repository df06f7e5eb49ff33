"""Figures of matplotlib, written complete or not at all."""

import os
from pathlib import Path
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of that many inches, whose parts make room for each other."""
    from matplotlib.figure import Figure  # a second to import, and only figures need it

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(beside, format="png")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
