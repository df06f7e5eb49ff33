"""`pmae compare`: runs beside each other, in the form of the paper's tables."""

import json
import sys
from pathlib import Path

from rich.console import Console

from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically, write_json
from perceptual_mae.report.comparison import RunComparison, compare
from perceptual_mae.report.figures import can_scatter, draw_scatter, draw_scores
from perceptual_mae.report.formats import to_latex, to_markdown

QUALITY = ("summary.psnr_masked", "evaluate")
ACCURACY = ("probe", "knn", "finetune")
DRAWN = ("summary.psnr", "summary.ssim", "evaluate", "probe", "knn", "finetune")
MOST_PANELS = 18


def run(runs: list[Path], *, out: Path | None, title: str, form: str, bench: Path | None, anyway: bool) -> None:
    """Compare runs, print their tables, and write all forms of them to `out`."""
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder")
    found = compare(runs, title=title, bench=bench, anyway=anyway)
    pages = {
        "markdown": to_markdown(title, found.tables, found.notes),
        "latex": to_latex(title, found.tables, found.notes),
        "json": json.dumps(found.to_json(), indent=2) + "\n",
    }
    sys.stdout.write(pages[form])
    if out is not None:
        write(found, pages, out)
    told = Console(stderr=True, soft_wrap=True)
    last = f"written to {out}" if out else "next: --out FOLDER writes Markdown, LaTeX, JSON and figures"
    told.print(last, highlight=False, markup=False)


def write(found: RunComparison, pages: dict[str, str], out: Path) -> None:
    """Write compare.md, .tex, .json and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "compare.md", pages["markdown"])
    write_atomically(out / "compare.tex", pages["latex"])
    write_json(out / "compare.json", found.to_json())
    known = [each for each in found.scored if any(score is not None for score in each.scores)]
    has_composite = any(".composite." in each.column.key for each in known)
    drawn = [each for each in known if each.column.key.startswith(DRAWN)]
    drawn = [each for each in drawn if not (has_composite and ".raw." in each.column.key)][:MOST_PANELS]
    if drawn:
        draw_scores(found.groups, drawn, out / "compare.png", found.title)
    across = found.find(*QUALITY)
    ups = next((columns for columns in map(found.together, ACCURACY) if columns), [])
    if across is not None and any(can_scatter(found.groups, across, up) for up in ups):
        draw_scatter(found.groups, across, ups, out / "scatter.png", found.title)
