"""`pmae weights`: foreign weights listed, checked, brought."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from perceptual_mae.cli.progress import Watcher
from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.pretrained_weights.download import bring, download, is_right
from perceptual_mae.pretrained_weights.registry import FOREIGN_WEIGHTS, check_sha256, default_folder, find
from perceptual_mae.report.formats import markdown_table


def show(folder: Path | None) -> None:
    """Print a line for each file of weights."""
    rows = []
    for name, entry in FOREIGN_WEIGHTS.items():
        found = find(name, folder)
        here = "missing" if found is None else f"in {_short(found.parent)}"
        rows.append([name, here, f"{entry.mebibytes} MiB", entry.unlocks, entry.file, entry.sha256 or "none published"])
    _say(markdown_table(["name", "where", "size", "unlocks", "file", "SHA-256"], rows))
    _say(f"\nfolder of weights: {folder or default_folder()} (--folder or $PMAE_WEIGHTS: another)")
    absent = [row[0] for row in rows if row[1] == "missing"]
    _say(f"bring one with: pmae weights fetch {absent[0]}" if absent else "all are here; pmae weights check")


def check(names: Sequence[str], folder: Path | None) -> None:
    """Print what holds; raise UserError with a line for each file that is not what it should be, or missing."""
    _check_names(names)
    bad = []
    for name in names or FOREIGN_WEIGHTS:
        entry, found = FOREIGN_WEIGHTS[name], find(name, folder)
        if found is None:
            if names:
                bad.append(f"{name}: {entry.file} is missing; bring it with pmae weights fetch {name}")
            else:
                _say(f"{name}: missing")
        elif entry.sha256 is None:
            _say(f"{name}: {found} cannot be checked, no SHA-256 of it is published")
        else:
            try:
                check_sha256(found, entry.sha256)
            except ValueError as mistake:
                bad.append(f"{name}: {mistake}; remove it, then pmae weights fetch {name}")
            else:
                _say(f"{name}: {found} is the published file")
    if bad:
        raise UserError("\n".join(bad))


def fetch(names: Sequence[str], folder: Path | None, source: Path | None, url: str | None) -> None:
    """Bring files, from `source` or from the network; what is there already and right is left alone."""
    _check_names(names)
    if url is not None and (len(names) > 1 or source is not None):
        raise UserError("--url is the address of one file; name one, and leave out --from")
    if source is not None and not source.exists():
        raise UserError(f"--from: {source} does not exist; name the folder that holds the files")
    target = folder or default_folder()
    with Watcher() as bars:

        def watch(file: str, done: int, total: int) -> None:
            bars(f"{file}, MiB", done >> 20, total >> 20)

        for name in names:
            entry = FOREIGN_WEIGHTS[name]
            if (target / entry.file).is_file() and is_right(target / entry.file, entry):
                _say(f"{name}: {target / entry.file} is there already")
            elif source is not None:
                _say(f"{name}: written to {bring(name, source, target, watch=watch)}")
            else:
                _say(f"{name}: written to {download(name, target, url=url, watch=watch)}")
    if target != default_folder():
        _say(f"this is not the default folder; set PMAE_WEIGHTS={target} for what is to find it")


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in FOREIGN_WEIGHTS:
            hint = did_you_mean(name, FOREIGN_WEIGHTS) or f"; choose from: {', '.join(FOREIGN_WEIGHTS)}"
            raise UserError(f"there are no weights called {name!r}{hint}")


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _say(text: str) -> None:
    Console(soft_wrap=True).print(text, highlight=False, markup=False)
