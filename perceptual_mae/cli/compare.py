"""`pmae compare`: runs side by side, in the form of the paper's tables."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from perceptual_mae.cli.options import check_run
from perceptual_mae.cli.output import print_lines
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically, write_json

if TYPE_CHECKING:
    from perceptual_mae.report.comparison import RunComparison

Form = Literal["markdown", "latex", "json"]

QUALITY = ("summary.psnr_masked", "evaluate")
ACCURACY = ("probe", "knn", "finetune")
DRAWN = ("summary.psnr", "summary.ssim", "evaluate", "probe", "knn", "finetune")
MOST_PANELS = 18


def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders; seeds of one method make one row.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write Markdown, LaTeX, JSON and figures there; none: print.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page, the tables and the figures.")] = "Comparison",
    form: Annotated[Form, typer.Option("--format", help="What is printed.")] = "markdown",
    bench: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Times from pmae bench --json; without it no time is shown.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Show runs that do not compare, and mark the columns where they differ.")
    ] = False,
) -> None:
    """Compare runs with each other and with the paper, e.g. pmae compare runs/mse_* runs/ls_gan_p_* --out tables.

    Runs of another budget, data, preprocessing, held-out images or masks are refused.
    """
    for path in runs:
        check_run(path)
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder")
    from perceptual_mae.report.comparison import compare
    from perceptual_mae.report.formats import to_latex, to_markdown

    comparison = compare(runs, title=title, bench=bench, anyway=anyway)
    pages = {
        "markdown": to_markdown(title, comparison.tables, comparison.notes),
        "latex": to_latex(title, comparison.tables, comparison.notes),
        "json": json.dumps(comparison.to_json(), indent=2) + "\n",
    }
    sys.stdout.write(pages[form])
    if out is not None:
        write_all(comparison, pages, out)
    last = f"written to {out}" if out else "next: --out FOLDER writes Markdown, LaTeX, JSON and figures"
    print_lines(last, to_stderr=True)


def write_all(comparison: "RunComparison", pages: dict[str, str], out: Path) -> None:
    """Write compare.md, .tex, .json and the figures."""
    from perceptual_mae.report.figures import can_scatter, draw_scatter, draw_scores

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "compare.md", pages["markdown"])
    write_atomically(out / "compare.tex", pages["latex"])
    write_json(out / "compare.json", comparison.to_json())
    known = [each for each in comparison.scored if any(score is not None for score in each.scores)]
    has_composite = any(".composite." in each.column.key for each in known)
    drawn = [each for each in known if each.column.key.startswith(DRAWN)]
    drawn = [each for each in drawn if not (has_composite and ".raw." in each.column.key)][:MOST_PANELS]
    if drawn:
        draw_scores(comparison.groups, drawn, out / "compare.png", comparison.title)
    across = comparison.find(*QUALITY)
    ups = next((columns for columns in map(comparison.together, ACCURACY) if columns), [])
    if across is not None and any(can_scatter(comparison.groups, across, up) for up in ups):
        draw_scatter(comparison.groups, across, ups, out / "scatter.png", comparison.title)
