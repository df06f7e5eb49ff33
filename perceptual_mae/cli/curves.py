"""`pmae curves`: logged scalars of several runs over the images they have seen, one panel a scalar."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perceptual_mae.cli.options import check_run
from perceptual_mae.cli.output import print_lines
from perceptual_mae.config.layers import flatten
from perceptual_mae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from perceptual_mae.run.run import Run

DEFAULT_KEYS = (
    "evaluation.psnr_masked",
    "raw.l1",
    "discriminator.accuracy_real",
    "discriminator.accuracy_fake",
    "gradient_share.decoder.adversarial",
    "gradient_share.decoder.style",
)

INCHES_A_LETTER, INCHES_A_LINE = 0.075, 0.17
"""Of the legend, at most; the figure grows with its lines."""


def curves_command(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders; each has a line in every panel.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="PNG to write.")] = Path("curves.png"),
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY", help="A dotted name of metrics.jsonl; repeatable; none: the usual ones."),
    ] = None,
) -> None:
    """Draw logged scalars over the images seen, e.g. pmae curves runs/a runs/b --key raw.l1 --out curves.png.

    A run that never logged a key is left out of its panel. Runs of the same name have the folders above in theirs.
    """
    for path in paths:
        check_run(path)
    from perceptual_mae.run.folder import distinct_names
    from perceptual_mae.run.run import Run

    runs = {name: Run(path) for name, path in zip(distinct_names(paths), paths, strict=True)}
    logged = logged_keys(runs)
    check_keys(keys or [], logged)
    drawn = keys or [key for key in DEFAULT_KEYS if key in logged]
    if not drawn:
        raise UserError("the runs have logged none of the usual scalars yet; name others with --key")
    draw(runs, drawn, out)
    print_lines(f"written to {out}: {', '.join(drawn)}")


def logged_keys(runs: Mapping[str, "Run"]) -> set[str]:
    """Return the dotted names of all numbers that any of the runs has logged."""
    records = [record for run in runs.values() for record in run.metrics()]
    return {key for record in records for key, value in flatten(record) if isinstance(value, int | float)}


def check_keys(keys: list[str], logged: set[str]) -> None:
    """Raise UserError for keys that no run has logged, which would be empty panels."""
    if mistaken := [f"{key}{did_you_mean(key, logged)}" for key in keys if key not in logged]:
        raise UserError(f"--key: no run has logged {', '.join(mistaken)}; give dotted names of metrics.jsonl")


def series(run: "Run", key: str) -> tuple[list[float], list[float]]:
    """Return thousands of images seen and the values of a key, in order."""
    batch_size = run.config.training.batch_size
    thousands, values = [], []
    for record in run.metrics():
        value: Any = record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            thousands.append(record["step"] * batch_size / 1000)
            values.append(float(value))
    return thousands, values


def draw(runs: Mapping[str, "Run"], keys: list[str], out: Path) -> None:
    """Write the figure: a panel a key, a line a run."""
    from perceptual_mae.visualization.figures import new_figure, save_figure

    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    per_line = max(1, int(4.2 * columns / (0.6 + INCHES_A_LETTER * max(map(len, runs)))))
    figure = new_figure(4.2 * columns, 3 * rows + INCHES_A_LINE * -(-len(runs) // per_line))
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, key in zip(panels.flat, keys, strict=False):
        for number, (name, run) in enumerate(runs.items()):
            thousands, values = series(run, key)
            marker = "." if len(values) < 8 else None
            if values:
                panel.plot(thousands, values, color=f"C{number}", label=name, linewidth=1.2, marker=marker)
        panel.set_title(key, fontsize=9)
        panel.set_xlabel("thousand images seen", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(keys) :]:
        panel.set_visible(False)
    labelled = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels.flat]
    handles = {label: line for pairs in labelled for line, label in pairs}
    ncols = min(per_line, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, fontsize=8)
    save_figure(figure, out)
