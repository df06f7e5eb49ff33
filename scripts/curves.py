"""Draw scalars of several runs over the images they have seen, one panel a scalar.

    uv run python scripts/curves.py runs/a runs/b --key raw.l1 --key evaluation.psnr_masked --out curves.png

A key is a dotted name in metrics.jsonl; a run that never logged it is left out of its panel. Runs of the same name are
told apart by the folders above them.
"""

import argparse
from pathlib import Path
from typing import Any

from perceptual_mae.config.layers import flatten
from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.run.folder import tell_apart
from perceptual_mae.run.run import Run
from perceptual_mae.visualization.figures import new_figure, save_figure

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


def series(run: Run, key: str) -> tuple[list[float], list[float]]:
    """Return images seen and values of a key, in order."""
    batch_size = run.config.training.batch_size
    seen, values = [], []
    for record in run.metrics():
        value: Any = record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            seen.append(record["step"] * batch_size / 1000)
            values.append(float(value))
    return seen, values


def draw(runs: dict[str, Run], keys: list[str], out: Path) -> None:
    """Write the figure: a panel a key, a line a run."""
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    entries = max(1, int(4.2 * columns / (0.6 + INCHES_A_LETTER * max(map(len, runs)))))
    figure = new_figure(4.2 * columns, 3 * rows + INCHES_A_LINE * -(-len(runs) // entries))
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, key in zip(panels.flat, keys, strict=False):
        for number, (name, run) in enumerate(runs.items()):
            seen, values = series(run, key)
            if seen:
                panel.plot(
                    seen, values, color=f"C{number}", label=name, linewidth=1.2, marker="." if len(seen) < 8 else None
                )
        panel.set_title(key, fontsize=9)
        panel.set_xlabel("thousand images seen", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(keys) :]:
        panel.set_visible(False)
    labelled = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels.flat]
    handles = {label: line for pairs in labelled for line, label in pairs}
    ncols = min(entries, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, fontsize=8)
    save_figure(figure, out)


def logged_keys(runs: dict[str, Run]) -> set[str]:
    """Return the dotted names of all numbers that any of the runs has logged."""
    records = [record for run in runs.values() for record in run.metrics()]
    return {key for record in records for key, value in flatten(record) if isinstance(value, int | float)}


def check_keys(keys: list[str], logged: set[str]) -> None:
    """Raise UserError for keys that no run has logged, which would be empty panels."""
    if mistaken := [f"{key}{did_you_mean(key, logged)}" for key in keys if key not in logged]:
        raise UserError(f"--key: no run has logged {', '.join(mistaken)}; give dotted names of metrics.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--key", action="append", help="a dotted name; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    arguments = parser.parse_args()
    try:
        names = tell_apart(arguments.runs)
        runs = {name: Run(path) for name, path in zip(names, arguments.runs, strict=True)}
        logged = logged_keys(runs)
        check_keys(arguments.key or [], logged)
        keys = arguments.key or [key for key in DEFAULT_KEYS if key in logged]
        if not keys:
            raise UserError("the runs have logged none of the usual scalars yet; name others with --key")
    except UserError as mistake:
        parser.error(str(mistake))
    draw(runs, keys, arguments.out)


if __name__ == "__main__":
    main()
