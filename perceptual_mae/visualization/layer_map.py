"""A picture of where in the encoder the labels can be read: accuracy by block and pooling."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceptual_mae.visualization.figures import new_figure, save_figure

LABELS = {"class": "class token", "mean": "mean pool"}


def draw_layer_map(scores: Mapping[str, Any], path: Path, *, title: str = "") -> None:
    """Write a heat map of probe accuracies, named "class/1" to "mean/K", as PNG; complete or not at all."""
    blocks = sorted({int(name.partition("/")[2]) for name in scores})
    values = [[100 * scores[f"{pooling}/{block}"]["accuracy"] for block in blocks] for pooling in LABELS]
    figure = new_figure(1.8 + 0.62 * len(blocks), 2.2)
    axes = figure.subplots()
    picture = axes.imshow(values, cmap="Blues", aspect="auto")
    low, high = picture.get_clim()
    for row, accuracies in enumerate(values):
        for column, accuracy in enumerate(accuracies):
            on_dark = accuracy > low + 0.6 * (high - low)
            axes.text(
                column, row, f"{accuracy:.1f}", ha="center", va="center", color="white" if on_dark else "black", size=8
            )
    axes.set_xticks(range(len(blocks)), [str(block) for block in blocks])
    axes.set_yticks(range(len(LABELS)), list(LABELS.values()))
    axes.set_xlabel("encoder block")
    axes.set_title(title, size=9)
    axes.tick_params(length=0)
    figure.colorbar(picture, ax=axes, label="top-1, %")
    save_figure(figure, path)
