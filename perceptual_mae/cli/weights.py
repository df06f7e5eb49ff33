"""`pmae weights`: list, check and fetch files of weights that others trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from perceptual_mae.cli.output import print_lines
from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.pretrained_weights.registry import FOREIGN_WEIGHTS, check_sha256, default_folder, find
from perceptual_mae.report.markdown_table import markdown_table

weights = typer.Typer(
    help="Weights of other networks: what they are for, whether they are here, how to get them.", no_args_is_help=True
)

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="As pmae weights list shows; none: all.")]
WeightsFolder = Annotated[
    Path | None, typer.Option("--folder", help="Folder of weights; none: $PMAE_WEIGHTS, or one in the user's cache.")
]


@weights.command("list")
def list_command(folder: WeightsFolder = None) -> None:
    """List every file of weights: what it unlocks, where it belongs, its SHA-256, whether it is there."""
    rows = []
    for name, entry in FOREIGN_WEIGHTS.items():
        path = find(name, folder)
        here = "missing" if path is None else f"in {_short(path.parent)}"
        rows.append([name, here, f"{entry.mebibytes} MiB", entry.unlocks, entry.file, entry.sha256 or "none published"])
    print_lines(markdown_table(["name", "where", "size", "unlocks", "file", "SHA-256"], rows))
    print_lines(f"\nfolder of weights: {folder or default_folder()} (--folder or $PMAE_WEIGHTS: another)")
    absent = [row[0] for row in rows if row[1] == "missing"]
    print_lines(f"add one with: pmae weights fetch {absent[0]}" if absent else "all are here; pmae weights check")


@weights.command("check")
def check_command(names: Names = None, folder: WeightsFolder = None) -> None:
    """Check the SHA-256 of the files that are there; those that are named must be there."""
    _check_names(names or [])
    bad = []
    for name in names or FOREIGN_WEIGHTS:
        entry, path = FOREIGN_WEIGHTS[name], find(name, folder)
        if path is None:
            if names:
                bad.append(f"{name}: {entry.file} is missing; add it with pmae weights fetch {name}")
            else:
                print_lines(f"{name}: missing")
        elif entry.sha256 is None:
            print_lines(f"{name}: {path} cannot be checked, no SHA-256 of it is published")
        else:
            try:
                check_sha256(path, entry.sha256)
            except ValueError as mistake:
                bad.append(f"{name}: {mistake}; remove it, then pmae weights fetch {name}")
            else:
                print_lines(f"{name}: {path} is the published file")
    if bad:
        raise UserError("\n".join(bad))


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
    _check_names(names)
    if url is not None and (len(names) > 1 or source is not None):
        raise UserError("--url is the address of one file; name one, and leave out --from")
    if source is not None and not source.exists():
        raise UserError(f"--from: {source} does not exist; name the folder that holds the files")
    target = folder or default_folder()
    from perceptual_mae.pretrained_weights.download import copy_weights, download, is_right
    from perceptual_mae.progress import ProgressBar

    with ProgressBar() as bars:

        def on_progress(file: str, done: int, total: int) -> None:
            bars(f"{file}, MiB", done >> 20, total >> 20)

        for name in names:
            entry = FOREIGN_WEIGHTS[name]
            if (target / entry.file).is_file() and is_right(target / entry.file, entry):
                print_lines(f"{name}: {target / entry.file} is there already")
            elif source is not None:
                print_lines(f"{name}: written to {copy_weights(name, source, target, on_progress=on_progress)}")
            else:
                print_lines(f"{name}: written to {download(name, target, url=url, on_progress=on_progress)}")
    if target != default_folder():
        print_lines(f"this is not the default folder; set PMAE_WEIGHTS={target} for what is to find it")


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in FOREIGN_WEIGHTS:
            hint = did_you_mean(name, FOREIGN_WEIGHTS) or f"; choose from: {', '.join(FOREIGN_WEIGHTS)}"
            raise UserError(f"there are no weights called {name!r}{hint}")


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
