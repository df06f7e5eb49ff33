"""The command line, `pmae`. Help, unknown layers and broken files come at once: torch is imported by what needs it."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from perceptual_mae.cli.groups import AgainstCommand, split_group
from perceptual_mae.errors import UserError
from perceptual_mae.layers import merge_layers

app = typer.Typer(
    help="Pre-train masked autoencoders with perceptual and adversarial losses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Layers = Annotated[
    list[str],
    typer.Argument(
        metavar="LAYER",
        help="Shipped recipes and methods (see pmae configs) or YAML files, then overrides key=value; later wins.",
    ),
]

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint in it.")]
DataKeys = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the data that differ here, e.g. data.root=~/cifar."),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="LAYER|FOLDER", help="Labelled images: a recipe, or a folder; none: the run's own data."),
]
Split = Annotated[
    Literal["val", "test"] | None, typer.Option(help="Images that are scored; none: the run's evaluation.split.")
]
Limit = Annotated[int | None, typer.Option(min=2, help="Use that many training images, from a fixed shuffle.")]
TestLimit = Annotated[int | None, typer.Option(min=1, help="Score that many images, from a fixed shuffle.")]
Ema = Annotated[bool | None, typer.Option("--ema/--no-ema", help="Averaged weights; none: where the run keeps them.")]
Baselines = Annotated[bool, typer.Option("--baselines", help="Also the encoder before training, and raw pixels.")]
Out = Annotated[Path | None, typer.Option(help="JSON file to write; none: in evaluation/ of the run.")]


View = Literal["raw", "composite", "both"]


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


@app.command("probe")
def probe_command(
    folder: Folder,
    overrides: DataKeys = None,
    protocol: Annotated[
        Literal["cached", "mae", "paper"],
        typer.Option(help="cached: features once, settings chosen on a part of train; mae, paper: augmented images."),
    ] = "cached",
    optimizer: Annotated[
        Literal["lbfgs", "sgd", "lars"] | None, typer.Option(help="Of the cached protocol; none: lbfgs.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Seeds of the probe; none: 0,1,2 if cached, else 0.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of sgd, lars, mae and paper; none: 90.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Batch of sgd and lars (none: 256), mae and paper (none: as published).")
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
        folder,
        overrides or [],
        protocol=protocol,
        optimizer=optimizer,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        layers=layers,
        baselines=baselines,
        data=data,
        split=split,
        limit=limit,
        test_limit=test_limit,
        ema=ema,
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
        folder,
        overrides or [],
        neighbours=neighbours,
        temperature=temperature,
        baselines=baselines,
        data=data,
        split=split,
        limit=limit,
        test_limit=test_limit,
        ema=ema,
        out=out,
    )


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


def check_run(folder: Path) -> None:
    """Raise UserError where there is no such folder, before anything heavy is imported."""
    if not folder.exists():
        raise UserError(f"{folder}: does not exist; give the folder that a run was written to")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 2 for the user's mistakes, 130 when interrupted, 1 for our own."""
    sys.path.append(os.getcwd())  # a `kind` may name a class in a file of the user's own
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="pmae", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as mistake:
        return _tell(str(mistake))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except RecursionError:
        return _tell("a YAML file refers to itself without end; remove the reference")
    except BrokenPipeError:  # the reader of our output left; nobody is to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as failure:
        return _tell(
            f"{failure.filename or 'a file'}: {failure.strerror or failure}; choose another place or make room"
        )
    except Exception as error:
        # Typer's own mistakes of usage; the class lives in click or inside typer, depending on the version.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _tell(f"{error.format_message()} (see pmae --help)") if error.format_message() else 2
        traceback.print_exc()
        return 1


def _tell(message: str) -> int:
    for line in message.splitlines():
        print(f"pmae: {line}", file=sys.stderr)
    return 2
