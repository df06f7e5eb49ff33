"""The command that trains a run's encoder on labels: finetune."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from perceptual_mae.cli.app import app
from perceptual_mae.cli.options import (
    Data,
    DataKeys,
    Ema,
    Folder,
    Limit,
    Out,
    Scored,
    Split,
    TestLimit,
    check_run,
)


@app.command("finetune")
def finetune_command(
    folder: Folder,
    overrides: DataKeys = None,
    recipe: Annotated[
        Literal["mae", "paper", "small"],
        typer.Option(help="mae, paper: as published, by the encoder's depth; small: minutes, for small images."),
    ] = "mae",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A value of the recipe, e.g. layer_decay=0.75, drop_path=0.1, pool=class_token, mixup=0; repeatable.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="None: the recipe's. Its warm-up shortens too.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images of one step over all processes; none: the recipe's.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the head; none: the recipe's.")] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Learn from this share of the training images, each class alike, e.g. 0.01.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="The baseline: fresh weights, and no layer decay unless set.")
    ] = False,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Seeds; accuracies get mean and deviation.")] = "0",
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    test_limit: TestLimit = None,
    ema: Ema = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the network there, for open_classifier in Python.")
    ] = None,
    out: Out = None,
) -> None:
    """Train a run's encoder end to end on labels, e.g. pmae finetune runs/a --recipe small --fraction 0.1."""
    check_run(folder)
    from perceptual_mae.cli.finetune import run

    named = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    run(
        Scored(folder, overrides or [], data, split, limit, test_limit, ema),
        recipe=recipe,
        settings=[*(settings or []), *(f"{key}={value}" for key, value in named.items() if value is not None)],
        fraction=fraction,
        from_scratch=from_scratch,
        seeds=seeds,
        save=save,
        out=out,
    )
