"""Commands that set runs beside each other: compare."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from perceptual_mae.cli.app import app
from perceptual_mae.cli.options import check_run

Form = Literal["markdown", "latex", "json"]


@app.command("compare")
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
    """Set runs beside each other and beside the paper, e.g. pmae compare runs/mse_* runs/ls_gan_p_* --out tables.

    Runs of another budget, data, preprocessing, held-out images or masks are refused.
    """
    for path in runs:
        check_run(path)
    from perceptual_mae.cli.compare import run

    run(runs, out=out, title=title, form=form, bench=bench, anyway=anyway)
