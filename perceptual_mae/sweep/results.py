"""Results of a sweep: each point's scores over its seeds, as a table and as curves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptual_mae.config.layers import flatten
from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.report.markdown_table import markdown_table
from perceptual_mae.report.seed_groups import Score, score
from perceptual_mae.sweep.folder import Planned
from perceptual_mae.sweep.grid import Axis
from perceptual_mae.visualization.figures import new_figure, save_figure

LOGARITHMIC_FROM = 20
"""Positive values whose largest is so many times the smallest stand on a logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """One combination of values: its scores by metric (None where no cell has one), and the cells not finished."""

    values: dict[str, str]
    scores: dict[str, Score | None]
    unfinished: list[str]


def read_points(planned: Sequence[Planned], metrics: Sequence[str]) -> list[Point]:
    """Return the points of a sweep in its order, from the summaries that are there."""
    cells: dict[tuple[str, ...], list[Planned]] = {}
    for each in planned:
        cells.setdefault(tuple(each.cell.point.values()), []).append(each)
    points = []
    for group in cells.values():
        summaries = {each.cell.name: read_summary(each.path) for each in group}
        scores = {
            metric: score({name: lookup(summary, metric) for name, summary in summaries.items() if summary is not None})
            for metric in metrics
        }
        points.append(
            Point(group[0].cell.point, scores, [name for name, summary in summaries.items() if summary is None])
        )
    return points


def read_summary(path: Path) -> dict[str, Any] | None:
    file = path / "summary.json"
    summary: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return summary


def check_metrics(summary: dict[str, Any], metrics: Sequence[str]) -> None:
    """Raise UserError for metrics that a run's summary does not know; losses are another method's, perhaps."""
    known = [key for key, value in flatten(summary) if value is None or isinstance(value, int | float)]
    for metric in metrics:
        if metric not in known and not metric.startswith("losses."):
            meant = did_you_mean(metric, known)
            raise UserError(f"--metric: summary.json has no number {metric!r}{meant}; known: {', '.join(known)}")


def lookup(summary: dict[str, Any], metric: str) -> float | None:
    value = dict(flatten(summary)).get(metric)
    return float(value) if isinstance(value, int | float) else None


def to_markdown(points: Sequence[Point], metrics: Sequence[str]) -> str:
    """Return a row for each point: its values, each metric's mean ± sample standard deviation over seeds, n."""
    keys = list(points[0].values)
    rows = []
    for point in points:
        n = max((score.n for score in point.scores.values() if score is not None), default=0)
        missing = ", ".join(point.unfinished)
        rows.append(
            [
                *point.values.values(),
                *("-" if score is None else score.format(".4g", ".2g") for score in map(point.scores.get, metrics)),
                str(n),
                missing,
            ]
        )
    header = [*keys, *metrics, "n", "not finished"]
    if not any(point.unfinished for point in points):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return markdown_table(header, rows)


def to_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the points as plain values."""
    return [
        {
            "point": point.values,
            "scores": {metric: None if score is None else score.to_json() for metric, score in point.scores.items()},
            "unfinished": point.unfinished,
        }
        for point in points
    ]


def draw_curves(points: Sequence[Point], axes: Sequence[Axis], metrics: Sequence[str], path: Path) -> None:
    """Write a panel for each metric over the first axis, a line for each combination of the others."""
    first, others = axes[0], [axis.key for axis in axes[1:]]
    places, is_logarithmic = _places(first.values)
    figure = new_figure(1.2 + 4.2 * len(metrics), 3.6)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        lines: dict[str, list[tuple[float, Score]]] = {}
        for point in points:
            label = ", ".join(f"{key.rpartition('.')[2]} {point.values[key]}" for key in others)
            point_score = point.scores[metric]
            if point_score is not None:
                lines.setdefault(label, []).append((places[first.values.index(point.values[first.key])], point_score))
        for number, (label, pairs) in enumerate(lines.items()):
            pairs.sort(key=lambda pair: pair[0])
            across, means = [place for place, _ in pairs], [each.mean for _, each in pairs]
            has_bars = any(each.std is not None for _, each in pairs)
            bars = [each.std or 0.0 for _, each in pairs] if has_bars else None
            panel.errorbar(across, means, yerr=bars, color=f"C{number}", marker="o", capsize=3, label=_plain(label))
        if is_logarithmic:
            panel.set_xscale("log")
        panel.set_xticks(places, list(map(_plain, first.values)), size=8)
        panel.minorticks_off()
        panel.set_xlabel(_plain(first.key))
        panel.set_title(metric, size=10)
        panel.grid(alpha=0.3)
        if others and lines:
            panel.legend(fontsize=8)
    save_figure(figure, path)


def _places(values: Sequence[str]) -> tuple[list[float], bool]:
    """Return where values stand and whether logarithmically: at their own size if all are numbers, else evenly."""
    try:
        places = [float(value) for value in values]
    except ValueError:
        return [float(number) for number in range(len(values))], False
    return places, min(places) > 0 and max(places) / min(places) >= LOGARITHMIC_FROM


def _plain(text: str) -> str:
    return text.replace("$", r"\$")
