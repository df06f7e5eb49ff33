"""Commands that draw: visualize."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from perceptual_mae.cli.app import app
from perceptual_mae.cli.options import Folder, check_run
from perceptual_mae.errors import UserError

View = Literal["raw", "composite", "both"]
KEEP = 0.6


@app.command("visualize")
def visualize_command(
    folder: Folder,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Image files of any size; none: held-out ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write; none: beside the run's other grids.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many held-out images.")] = 8,
    ratio: Annotated[float | None, typer.Option(min=0, max=0.999, help="Hidden share; none: the run's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the masks; none: 0.")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Another run on the same images and masks; repeat it.")
    ] = None,
    view: Annotated[View | None, typer.Option(help="Which pictures of each run; none: both.")] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Draw what the encoder's class token looks at, nothing hidden.")
    ] = False,
    keep: Annotated[
        float | None,
        typer.Option(min=0.001, max=1, help=f"Share of the attention that the kept patches hold; none: {KEEP}."),
    ] = None,
) -> None:
    """Draw original, masked, raw and composite reconstructions, or attention, of one run or of several.

    e.g. pmae visualize runs/a photo.jpg --attention
    """
    masked = {"--ratio": ratio, "--seed": seed, "--view": view}
    if useless := [name for name, value in masked.items() if value is not None and attention]:
        raise UserError(f"--attention hides nothing and reconstructs nothing; leave out {', '.join(useless)}")
    if keep is not None and not attention:
        raise UserError("--keep is a share of the attention; add --attention")
    for path in (folder, *(beside or [])):
        check_run(path)
    from perceptual_mae.cli.visualize import run

    kept = (KEEP if keep is None else keep) if attention else None
    run(folder, images or [], beside or [], out=out, count=count, ratio=ratio, seed=seed, view=view, keep=kept)
