"""Commands that train many runs: sweep."""

from pathlib import Path
from typing import Annotated

import typer

from perceptual_mae.cli.app import app
from perceptual_mae.cli.options import Layers
from perceptual_mae.config.layers import merge_layers
from perceptual_mae.errors import UserError
from perceptual_mae.sweep.grid import make_cells, parse_axis


@app.command("sweep")
def sweep_command(
    arguments: Layers,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A run folder for each cell; the same command resumes.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,...", help="A key and its values; may be repeated. layer=A,B takes layers."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Values of training.seed; none: the configuration's.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A number of summary.json; may be repeated; none: psnr_masked."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and how far they are, and stop.")] = False,
) -> None:
    """Train a grid of runs, e.g. pmae sweep cifar10 mse --grid optimizer.lr=5e-4,1e-3 --seeds 0,1,2 --out runs/lr.

    A run that fails is written down and the others go on; the exit code is then 1.
    """
    merge_layers(arguments)
    axes = [parse_axis(text) for text in grid or []]
    numbers = read_seeds(seeds)
    for cell in make_cells(axes, numbers):
        merge_layers(cell.arguments(arguments))
    if not axes and not numbers:
        raise UserError("nothing to sweep over; give --grid KEY=A,B,... or --seeds 0,1,2 (one run: pmae pretrain)")
    from perceptual_mae.cli.sweep import run

    run(arguments, axes, seeds=numbers, out=out, metrics=metric or ["psnr_masked"], dry_run=dry_run)


def read_seeds(text: str | None) -> tuple[int, ...]:
    """Return the seeds of a list such as 0,1,2, without importing anything heavy."""
    words = text.split(",") if text is not None else []
    if not all(word.strip().isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise UserError(f"--seeds is {text!r}; give different whole numbers from 0 on, such as 0,1,2")
    return tuple(int(word) for word in words)
