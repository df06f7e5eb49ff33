"""Commands that score a run's representation: probe, knn."""

from typing import Annotated, Literal

import typer

from perceptual_mae.cli.app import app
from perceptual_mae.cli.options import (
    Baselines,
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


@app.command("probe")
def probe_command(
    folder: Folder,
    overrides: DataKeys = None,
    protocol: Annotated[
        Literal["cached", "mae", "paper", "kth"] | None,
        typer.Option(
            help="cached: features once, settings chosen on a part of train; mae, paper: augmented images; "
            "kth: features once, nothing chosen, scored on train, too; none: cached, or what --head needs."
        ),
    ] = None,
    head: Annotated[
        Literal["linear", "dense", "mlp"] | None,
        typer.Option(
            help="linear: BatchNorm, linear; dense, mlp: LayerNorm, linear or MLP, by kth; none: linear, mlp of kth."
        ),
    ] = None,
    optimizer: Annotated[
        Literal["lbfgs", "sgd", "lars"] | None, typer.Option(help="Of the cached protocol; none: lbfgs.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Seeds of the probe; none: 0,1,2 if cached, else 0.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of sgd, lars, mae and paper (none: 90), kth (50).")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Batch of sgd and lars (none: 256), kth (64), mae and paper (as published)."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Probe every block, and draw the map.")] = False,
    baselines: Baselines = False,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    test_limit: TestLimit = None,
    ema: Ema = None,
    out: Out = None,
) -> None:
    """Train linear probes on a run's frozen encoder, e.g. pmae probe runs/a --baselines."""
    check_run(folder)
    from perceptual_mae.cli.probe import run

    run(
        Scored(folder, overrides or [], data, split, limit, test_limit, ema),
        protocol=protocol,
        head=head,
        optimizer=optimizer,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        layers=layers,
        baselines=baselines,
        out=out,
    )


@app.command("knn")
def knn_command(
    folder: Folder,
    overrides: DataKeys = None,
    neighbours: Annotated[str, typer.Option(metavar="K,K,...", help="Numbers of neighbours.")] = "10,20,100,200",
    temperature: Annotated[float, typer.Option(min=1e-2, help="Votes count exp(cosine / temperature).")] = 0.07,
    baselines: Baselines = False,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    test_limit: TestLimit = None,
    ema: Ema = None,
    out: Out = None,
) -> None:
    """Classify by the nearest neighbours among a run's frozen features, e.g. pmae knn runs/a."""
    check_run(folder)
    from perceptual_mae.cli.knn import run

    run(
        Scored(folder, overrides or [], data, split, limit, test_limit, ema),
        neighbours=neighbours,
        temperature=temperature,
        baselines=baselines,
        out=out,
    )
