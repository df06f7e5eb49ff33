"""Arguments and options that several commands share."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from perceptual_mae.config.known_keys import check_keys, store
from perceptual_mae.config.layers import merge_layers
from perceptual_mae.errors import UserError

if TYPE_CHECKING:
    from perceptual_mae.config.parsing import RunConfig

Layers = Annotated[
    list[str],
    typer.Argument(
        metavar="LAYER",
        help="Shipped recipes and methods (see pmae configs) or YAML files, then overrides key=value; later wins.",
    ),
]

LARGEST_SIDE = 16_384
"""Of images that are scaled, in pixels."""
MOST = 1_000_000_000
"""Of images, epochs, rounds: what no command reaches, and every library can count to."""

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
Limit = Annotated[
    int | None, typer.Option(min=2, max=MOST, help="Use that many training images, from a fixed shuffle.")
]
TestLimit = Annotated[int | None, typer.Option(min=1, max=MOST, help="Score that many images, from a fixed shuffle.")]
Ema = Annotated[bool | None, typer.Option("--ema/--no-ema", help="Averaged weights; none: where the run keeps them.")]
Baselines = Annotated[bool, typer.Option("--baselines", help="Also the encoder before training, and raw pixels.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Drop what a stopped call left, and start over.")]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="Scores, or all, or cheap (no networks); none: all that can be had."),
]
Require = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A score that must be available; may be repeated.")
]
FeatureNetworks = Annotated[
    list[str] | None,
    typer.Option(
        "--features",
        metavar="NETWORK",
        help="Network of fid, kid, is: inception, a TorchScript FILE, torchvision:NAME:FILE, timm:NAME:FILE, "
        "cifar_resnet:FILE or run:FOLDER, then ,option=value (size, mean, ...); may be repeated; none: inception.",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="Run code that is stored in the folder, or in a --features file: see SECURITY.md."
    ),
]
Out = Annotated[Path | None, typer.Option(help="JSON file to write; none: in evaluation/ of the run.")]


@dataclass(frozen=True)
class Scored:
    """Which run is scored, on which images (none: its own), with which of its weights (none: averaged if kept).

    trust_code: whether code that its folder names may run.
    """

    path: Path
    overrides: list[str]
    data: str | None
    split: str | None
    limit: int | None
    test_limit: int | None
    ema: bool | None
    trust_code: bool = False


def check_layers(arguments: Sequence[str]) -> None:
    """Raise UserError for unknown layers, broken files and, as far as that is known without PyTorch, unknown keys."""
    check_keys(merge_layers(arguments))


def load_layers(arguments: Sequence[str]) -> "RunConfig":
    """Return the configuration of layers and overrides; leave a table of all keys to `check_layers` of later calls."""
    from perceptual_mae.config.all_keys import key_table
    from perceptual_mae.config.parsing import load_config

    store(key_table)
    return load_config(arguments)


def check_run(folder: Path) -> None:
    """Raise UserError where there is no such folder, before anything heavy is imported."""
    if not folder.exists():
        raise UserError(f"{folder}: does not exist; give the folder that a run was written to")


def check_image_folder(folder: Path) -> None:
    """Raise UserError where there is no such folder, before anything heavy is imported."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'does not exist'}; give a folder of images")


def read_size(text: str, option: str) -> tuple[int, int]:
    """Return height and width of SIDE or HEIGHTxWIDTH."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if not 1 <= len(sides) <= 2 or not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise UserError(f"{option} is {text!r}; give a side of up to {LARGEST_SIDE} pixels, or both, such as 192x256")
    return sides[0], sides[-1]


def read_numbers(text: str, option: str, *, least: int) -> tuple[int, ...]:
    """Return the numbers of a list such as 0,1,2; each one once and none below `least`."""
    try:
        values = tuple(int(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < least or max(values) >= 2**63 or len(set(values)) < len(values):
        raise UserError(f"{option} is {text!r}; give different whole numbers from {least} on, such as 10,20,100")
    return values


AGAINST = "--against"


class AgainstCommand(TyperCommand):
    """A command whose `--against` takes all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        remaining: list[str] = super().parse_args(ctx, join_layers_of_against(args))
        return remaining


def join_layers_of_against(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with those after each `--against` joined to one."""
    joined: list[str] = []
    layers: list[str] | None = None
    for word in [*words, "-"]:
        if layers is not None and not word.startswith("-"):
            layers.append(word)
            continue
        if layers:
            joined.append(shlex.join(layers))
        layers = [] if word == AGAINST else None
        joined.append(word)
    return joined[:-1]


def split_layers(joined: str) -> list[str]:
    """Return the words that were joined."""
    return shlex.split(joined)
