"""Draw scalars of several runs over the images they have seen, one panel a scalar.

    uv run python scripts/curves.py runs/a runs/b --key raw.l1 --key evaluation.psnr_masked --out curves.png

A key is a dotted name in metrics.jsonl; a run that never logged it is left out of its panel.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from perceptual_mae.run import Run

DEFAULT_KEYS = (
    "evaluation.psnr_masked",
    "raw.l1",
    "discriminator.accuracy_real",
    "discriminator.accuracy_fake",
    "gradient_share.decoder.adversarial",
    "gradient_share.decoder.style",
)


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
    figure, panels = plt.subplots(rows, columns, figsize=(4.2 * columns, 3 * rows), squeeze=False)
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
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=min(6, len(handles)), fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--key", action="append", help="a dotted name; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    arguments = parser.parse_args()
    draw(
        {path.absolute().name: Run(path) for path in arguments.runs}, arguments.key or list(DEFAULT_KEYS), arguments.out
    )


if __name__ == "__main__":
    main()
