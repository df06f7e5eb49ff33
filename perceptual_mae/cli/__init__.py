"""The command line, `pmae`. Help, unknown layers and broken files come at once: torch is imported by what needs it."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

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
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint in it.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Image files; none: held-out ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write; none: beside the run's other grids.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many held-out images.")] = 8,
    ratio: Annotated[float | None, typer.Option(min=0, max=0.999, help="Hidden share; none: the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the masks.")] = 0,
) -> None:
    """Draw original, masked, raw and composite reconstructions side by side."""
    if not folder.exists():
        raise UserError(f"{folder}: does not exist; give the folder that a run was written to")
    from perceptual_mae.cli.visualize import run

    run(folder, images or [], out=out, count=count, ratio=ratio, seed=seed)


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
