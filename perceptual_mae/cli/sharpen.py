"""`pmae sharpen`: adversarial training of a decoder alone."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from perceptual_mae.cli.options import TrustCode, check_run
from perceptual_mae.cli.output import print_lines


def sharpen_command(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="A run folder, a checkpoint in it, or an exported encoder.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAYER", help="A method (none: recommended) and other layers, then overrides."),
    ] = None,
    decoder: Annotated[
        Literal["kept", "fresh"], typer.Option(help="Start from the run's decoder, or from a new one.")
    ] = "kept",
    share: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1000, help="Images to train on, relative to those the run was trained on; none: 0.15."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run; none: RUN-sharpened.")] = None,
    trust_code: TrustCode = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in an empty folder.")] = False,
) -> None:
    """Train the decoder of a run against a discriminator; its encoder stays bit for bit, e.g. pmae sharpen runs/a.

    Every score of the representation stays what it is.
    """
    check_run(source)
    from perceptual_mae.cli import pretrain
    from perceptual_mae.training.sharpening import sharpening_config

    config = sharpening_config(source, arguments or [], decoder=decoder, share=share, trust_code=trust_code)
    folder = source.parent.parent if source.parent.name == "checkpoints" else source
    out = out or folder.with_name(f"{folder.stem}-sharpened")
    pretrain.run(config, out, dry_run=dry_run, fresh=fresh)
    if not dry_run and not source.is_file():
        print_lines(f"before and after: pmae visualize {source} --beside {out}, pmae compare {source} {out} --anyway")
