"""Figures of matplotlib as PNG files."""

from pathlib import Path
from typing import Any

from perceptual_mae.files import replacing


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of that many inches, whose parts make room for each other."""
    from matplotlib.figure import Figure  # a second to import, and only figures need it

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, complete or not at all; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
