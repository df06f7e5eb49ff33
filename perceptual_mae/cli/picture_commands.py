"""Commands that draw: visualize."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from perceptual_mae.cli.app import app
from perceptual_mae.cli.options import Folder, check_run

View = Literal["raw", "composite", "both"]


@app.command("visualize")
def visualize_command(
    folder: Folder,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Image files; none: held-out ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write; none: beside the run's other grids.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many held-out images.")] = 8,
    ratio: Annotated[float | None, typer.Option(min=0, max=0.999, help="Hidden share; none: the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the masks.")] = 0,
    beside: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Another run on the same images and masks; repeat it.")
    ] = None,
    view: Annotated[View, typer.Option(help="Which pictures of each run.")] = "both",
) -> None:
    """Draw original, masked, raw and composite reconstructions side by side, of one run or of several."""
    for path in (folder, *(beside or [])):
        check_run(path)
    from perceptual_mae.cli.visualize import run

    run(folder, images or [], beside or [], out=out, count=count, ratio=ratio, seed=seed, view=view)
