"""Figures of the comparison: each score by method, and reconstruction against representation."""

from collections.abc import Sequence
from pathlib import Path

from perceptual_mae.figures import new_figure, save_figure
from perceptual_mae.report.groups import Group, Score
from perceptual_mae.report.tables import Scored

PANELS_A_ROW = 3


def draw_scores(groups: Sequence[Group], scored: Sequence[Scored], path: Path, title: str) -> None:
    """Write a panel for each score: every run a dot, mean and sample deviation of the seeds a bar."""
    columns = min(PANELS_A_ROW, len(scored))
    rows = -(-len(scored) // columns)
    figure = new_figure(2.2 + 3.0 * columns, 0.6 + rows * (1.0 + 0.32 * len(groups)))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    places = range(len(groups))[::-1]  # the first method on top
    for panel, each in zip(panels.flat, scored, strict=False):
        for number, (place, found) in enumerate(zip(places, each.scores, strict=True)):
            if found is not None:
                _draw_one(panel, found, place, f"C{number}")
        panel.set_yticks(list(places), [_label(group) for group in groups], size=8)
        panel.set_ylim(-0.6, len(groups) - 0.4)
        panel.set_title(each.column.heading, size=9)
        panel.locator_params(axis="x", nbins=4)
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(axis="x", alpha=0.3)
    for panel in list(panels.flat)[len(scored) :]:
        panel.set_visible(False)
    figure.suptitle(_plain(title), size=10)
    save_figure(figure, path)


def draw_scatter(groups: Sequence[Group], across: Scored, up: Scored, path: Path, title: str) -> None:
    """Write reconstruction quality (across) against accuracy (up): every run a dot, a group's mean a ringed one."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for number, (group, x, y) in enumerate(zip(groups, across.scores, up.scores, strict=True)):
        if x is None or y is None:
            continue
        color, runs = f"C{number}", [name for name in x.values if name in y.values]
        axes.scatter([x.values[name] for name in runs], [y.values[name] for name in runs], color=color, s=14, alpha=0.6)
        axes.errorbar(x.mean, y.mean, xerr=x.deviation, yerr=y.deviation, color=color, capsize=2, linewidth=1)
        axes.scatter(x.mean, y.mean, color=color, s=60, edgecolors="black", label=_label(group), zorder=3)
    axes.set_xlabel(across.column.heading)
    axes.set_ylabel(f"{up.column.heading}, top-1 %")
    axes.set_title(_plain(title), size=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def can_scatter(across: Scored | None, up: Scored | None) -> bool:
    """Tell whether any group has both scores."""
    if across is None or up is None:
        return False
    return any(x is not None and y is not None for x, y in zip(across.scores, up.scores, strict=True))


def _draw_one(panel: object, found: Score, place: int, color: str) -> None:
    values = list(found.values.values())
    panel.scatter(values, [place] * len(values), color=color, s=12, alpha=0.6)  # type: ignore[attr-defined]
    panel.errorbar(  # type: ignore[attr-defined]
        found.mean, place, xerr=found.deviation, color=color, marker="o", markersize=5, capsize=3
    )


def _label(group: Group) -> str:
    n = len(group.entries)
    return _plain(f"{group.label}, n = {n}" if n > 1 else group.label)


def _plain(text: str) -> str:
    """Return text without the formulas that matplotlib sees between dollars."""
    return text.replace("$", r"\$")
