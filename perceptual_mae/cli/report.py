"""`pmae report`: everything that run folders hold as one self-contained HTML page, or served while the runs go on."""

from pathlib import Path
from typing import Annotated

import typer

from perceptual_mae.cli.options import check_run
from perceptual_mae.cli.output import check_out, print_lines
from perceptual_mae.errors import UserError

PORT = 8642


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, finished or not.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML file to write; none: report.html.")] = None,
    title: Annotated[str, typer.Option(help="Of the page; none: the runs' names.")] = "",
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page at 127.0.0.1 while the runs go on; write no file.")
    ] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help=f"Port of --live; none: {PORT}.")] = None,
) -> None:
    """Write a page of curves, scores, samples and configurations, e.g. pmae report runs/a runs/b --out report.html.

    The page is one file that asks for nothing else; it shows what the folders hold, and no section without data.
    """
    for path in runs:
        check_run(path)
    if live and out is not None:
        raise UserError("--live serves the page and writes no file; leave out --out or --live")
    if port is not None and not live:
        raise UserError("--port is that of --live; add --live")
    out = out or Path("report.html")
    check_out(None if live else out, (".html", ".htm"))
    from perceptual_mae.report.page.document import page, report

    if live:
        from perceptual_mae.report.page.live import serve_live

        serve_live(runs, title, port or PORT, print_lines)
        return
    from perceptual_mae.files import replacing

    content = report(runs, title=title)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_text(page(content), encoding="utf-8")
    print_lines(*(f"warning: {note}" for note in content["notes"]), to_stderr=True)
    print_lines(f"written to {out}: {out.stat().st_size / 1e6:.2f} MB, {len(runs)} run{'s' * (len(runs) > 1)}")
