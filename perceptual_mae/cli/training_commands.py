"""Commands that train or plan it: pretrain, configs, bench."""

from pathlib import Path
from typing import Annotated

import typer

from perceptual_mae.cli.app import app
from perceptual_mae.cli.groups import AgainstCommand, split_group
from perceptual_mae.cli.options import Layers
from perceptual_mae.config.layers import merge_layers


@app.command("pretrain")
def pretrain_command(
    arguments: Layers,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same command again resumes it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in an empty folder.")] = False,
) -> None:
    """Train a masked autoencoder, e.g. pmae pretrain cifar10 ls_gan_p training.epochs=50 --out runs/a."""
    merge_layers(arguments)
    from perceptual_mae.cli.pretrain import run

    run(arguments, out=out, dry_run=dry_run, fresh=fresh)


@app.command("configs")
def configs_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAYER", help="Layers and overrides key=value to resolve; none: list them."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a file, for editors.")] = False,
) -> None:
    """List the shipped recipes and methods, or print what layers resolve to."""
    merge_layers(arguments or [])
    from perceptual_mae.cli.configs import run

    run(arguments or [], schema=schema)


@app.command("bench", cls=AgainstCommand)
def bench_command(
    arguments: Layers,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER...", help="Another configuration; may be repeated. Ratios are to the first."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each kind of step is measured.")] = 10,
    warmup: Annotated[int, typer.Option(min=1, help="Rounds before, which do not count.")] = 1,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images of a step; none: each configuration's.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a CPU.")] = 1,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures to a file.")] = None,
) -> None:
    """Measure what a training step costs, e.g. pmae bench cifar10 ls_gan_p --against cifar10 mse.

    Images are random, so no data are needed. The configurations take turns, step by step, in one process.
    """
    groups = [arguments, *(split_group(group) for group in against or [])]
    for group in groups:
        merge_layers(group)
    from perceptual_mae.cli.bench import run

    run(groups, rounds=rounds, warmup=warmup, threads=threads, batch_size=batch_size, file=json)
