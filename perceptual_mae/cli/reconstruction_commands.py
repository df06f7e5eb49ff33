"""Commands that score a run's reconstructions: evaluate."""

from typing import Annotated

import typer

from perceptual_mae.cli.app import app
from perceptual_mae.cli.options import DataKeys, Ema, Folder, Out, Scored, Split, TestLimit, check_run


@app.command("evaluate")
def evaluate_command(
    folder: Folder,
    overrides: DataKeys = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Scores, or all, or cheap (no networks); none: all that can be had."),
    ] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A score that must be available; may be repeated.")
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK",
            help="Network of fid, kid, is: inception, a TorchScript FILE, torchvision:NAME:FILE, timm:NAME:FILE, "
            "cifar_resnet:FILE or run:FOLDER, then ,option=value (size, mean, ...); may be repeated; none: inception.",
        ),
    ] = None,
    ratio: Annotated[float | None, typer.Option(min=0, max=0.999, help="Hidden share; none: the run's last.")] = None,
    mask: Annotated[str | None, typer.Option(metavar="KIND", help="Kind of masks; none: the run's.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the masks; none: the run's evaluation.seed.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also mean colour, nearest patch and inverse distance.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once; none: the run's.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="LAYER|FOLDER", help="Images, labelled or not: a recipe or a folder; none: the run's."),
    ] = None,
    split: Split = None,
    limit: TestLimit = None,
    ema: Ema = None,
    out: Out = None,
) -> None:
    """Score reconstructions of held-out images under fixed masks, e.g. pmae evaluate runs/a --baselines."""
    check_run(folder)
    from perceptual_mae.cli.evaluate import run

    run(
        Scored(folder, overrides or [], data, split, None, limit, ema),
        metrics=metrics,
        require=require or [],
        features=features or [],
        ratio=ratio,
        mask=mask,
        seed=seed,
        baselines=baselines,
        batch_size=batch_size,
        out=out,
    )
