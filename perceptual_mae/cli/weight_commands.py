"""Commands about files of weights that others trained: weights list, check, fetch."""

from pathlib import Path
from typing import Annotated

import typer

from perceptual_mae.cli.app import app

weights = typer.Typer(
    help="Weights of other networks: what they are for, whether they are here, bring them.", no_args_is_help=True
)
app.add_typer(weights, name="weights")

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="As pmae weights list shows; none: all.")]
WeightsFolder = Annotated[
    Path | None, typer.Option("--folder", help="Folder of weights; none: $PMAE_WEIGHTS, or one in the user's cache.")
]


@weights.command("list")
def list_command(folder: WeightsFolder = None) -> None:
    """List every file of weights: what it unlocks, where it belongs, its SHA-256, whether it is there."""
    from perceptual_mae.cli.weights import show

    show(folder)


@weights.command("check")
def check_command(names: Names = None, folder: WeightsFolder = None) -> None:
    """Hold the files that are there against their SHA-256; those that are named must be there."""
    from perceptual_mae.cli.weights import check

    check(names or [], folder)


@weights.command("fetch")
def fetch_command(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="As pmae weights list shows.")],
    folder: WeightsFolder = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Copy from this folder, where there is no network.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Another address of this one file, such as a mirror's.")] = None,
) -> None:
    """Download files of weights, e.g. pmae weights fetch inception."""
    from perceptual_mae.cli.weights import fetch

    fetch(names, folder, source, url)
