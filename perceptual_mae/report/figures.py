"""Figures of the comparison: each score by method, and reconstruction against representation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptual_mae.report.columns import Column
from perceptual_mae.report.seed_groups import Group, Score
from perceptual_mae.report.tables import Scored, mark
from perceptual_mae.visualization.figures import new_figure, save_figure

PANELS_A_ROW = 3
COLORS, SHAPES = 10, "os^D"
"""matplotlib has ten colours; then the shape changes."""


def draw_scores(groups: Sequence[Group], scored: Sequence[Scored], path: Path, title: str) -> None:
    """Write a panel for each score: every run a dot, mean and sample deviation of the seeds a bar.

    Hollow dots are scores that the tables mark: they do not compare with the others.
    """
    columns = min(PANELS_A_ROW, len(scored))
    rows = -(-len(scored) // columns)
    figure = new_figure(2.2 + 3.0 * columns, 0.6 + rows * (1.0 + 0.32 * len(groups)))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    places = range(len(groups))[::-1]  # the first method on top
    for panel, each in zip(panels.flat, scored, strict=False):
        for number, (height, group, score) in enumerate(zip(places, groups, each.scores, strict=True)):
            if score is not None:
                _draw_one(panel, score, height, f"C{number}", is_hollow=bool(mark(each.column, group)))
        panel.set_yticks(list(places), [_label(group) for group in groups], size=8)
        panel.set_ylim(-0.6, len(groups) - 0.4)
        panel.set_title(_heading(each.column), size=9)
        panel.locator_params(axis="x", nbins=4)
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(axis="x", alpha=0.3)
    for panel in list(panels.flat)[len(scored) :]:
        panel.set_visible(False)
    figure.suptitle(_plain(title), size=10)
    save_figure(figure, path)


def draw_scatter(groups: Sequence[Group], across: Scored, ups: Sequence[Scored], path: Path, title: str) -> None:
    """Write a panel for each accuracy (up) against reconstruction quality (across).

    Every run is a dot, a group's mean a ringed one. Groups whose quality the tables mark are left out, and said to be.
    """
    figure = new_figure(1.0 + 4.2 * len(ups), 4.4 + 0.2 * len(groups) / (1 + len(ups)))
    marked = [mark(across.column, group) for group in groups]
    panels = figure.subplots(1, len(ups), squeeze=False)[0]
    for panel, up in zip(panels, ups, strict=True):
        for number, (group, x, y) in enumerate(zip(groups, across.scores, up.scores, strict=True)):
            if x is None or y is None or marked[number]:
                continue
            color, shape = f"C{number % COLORS}", SHAPES[number // COLORS % len(SHAPES)]
            runs = [name for name in x.values if name in y.values]
            dots = ([x.values[name] for name in runs], [y.values[name] for name in runs])
            panel.scatter(*dots, color=color, marker=shape, s=14, alpha=0.6)
            panel.errorbar(x.mean, y.mean, xerr=x.std, yerr=y.std, color=color, capsize=2, linewidth=1)
            ringed = {"edgecolors": "black", "zorder": 3, "s": 60}
            panel.scatter(x.mean, y.mean, color=color, marker=shape, label=_label(group), **ringed)
        panel.set_xlabel(across.column.heading)
        panel.set_ylabel(f"{up.column.heading}, top-1 %")
        panel.grid(alpha=0.3)
    named = panels[0].get_legend_handles_labels()
    figure.legend(*named, fontsize=8, loc="outside lower center", ncols=1 + len(ups))
    left_out = [_label(group) for group, why in zip(groups, marked, strict=True) if why]
    figure.suptitle(_plain(title) + (f" (without {', '.join(left_out)})" if left_out else ""), size=10)
    save_figure(figure, path)


def can_scatter(groups: Sequence[Group], across: Scored, up: Scored) -> bool:
    """Tell whether any group has both scores, and neither is marked."""
    pairs = zip(groups, across.scores, up.scores, strict=True)
    return any(x is not None and y is not None and not mark(across.column, group) for group, x, y in pairs)


def _draw_one(panel: Any, score: Score, height: int, color: str, *, is_hollow: bool) -> None:
    values, fill = list(score.values.values()), "none" if is_hollow else color
    panel.scatter(values, [height] * len(values), facecolors=fill, edgecolors=color, s=12, alpha=0.6)
    dot = {"marker": "o", "markersize": 5, "markerfacecolor": fill}
    panel.errorbar(score.mean, height, xerr=score.std, color=color, capsize=3, **dot)


def _heading(column: Column) -> str:
    """Return a column's heading with the part of the image that it is about, which a table has in its title."""
    return f"{column.heading}, {column.region}" if column.region else column.heading


def _label(group: Group) -> str:
    n = len(group.records)
    return _plain(f"{group.label}, n = {n}" if n > 1 else group.label)


def _plain(text: str) -> str:
    """Return text without the formulas that matplotlib sees between dollars."""
    return text.replace("$", r"\$")
