"""A run's folder: claimed without harming anybody's files, resumed only by the run it belongs to."""

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from perceptual_mae.config.layers import flatten, read_yaml, to_yaml
from perceptual_mae.config.own_kinds import EVERYTHING, NOTHING
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.data import DATASETS
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically, write_json

CONFIG, LOG = "config.yaml", "log.txt"
MAY_DIFFER = (
    *("training.epochs", "data.root", "data.workers", "data.max_pixels", "data.max_unreadable", "data.eval_resize"),
    *("tracking", "evaluation"),
)
"""What a resumed run may change: how long it trains, where its images are, how it reads, reports and evaluates."""

LEFT_BY_A_START = (LOG, f".{CONFIG}.partial")
"""All that a run leaves that was killed before it had described itself: nothing to resume, and nothing to lose."""

VERSIONS = ("perceptual-mae", "torch", "torchvision", "accelerate", "numpy", "pillow", "pytorch-msssim", "safetensors")


def claim(out: Path, config: RunConfig, *, fresh: bool = False) -> Path:
    """Return the folder to train in: `out` where it is empty, new or the same run's, else a UserError.

    With `fresh` a folder that is in use is left alone and the first free name next to it is taken (`out-2`, ...).
    Nothing is written here.
    """
    if fresh:
        return next(path for path in _names(out) if _is_free(path))
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another folder with --out")
    if _is_free(out):
        return out
    if not (out / CONFIG).exists():
        raise UserError(f"{out}: holds files that are not a run's; choose an empty folder with --out")
    if changed := differences(read_config(out), config):
        raise UserError(
            f"{out}: holds a run with other values of {', '.join(changed)}; repeat its command to resume it, "
            "or choose another --out, or --fresh for a new folder next to it"
        )
    return out


def describe(
    folder: Path, config: RunConfig, device: str, precision: str, started_from: dict[str, Any] | None = None
) -> None:
    """Write the resolved configuration of a run into its folder, and the environment.

    started_from: whose weights the encoder starts with, if it is about to.
    """
    values = config.model_dump(mode="json", by_alias=True)
    if config.data.kind in DATASETS and (root := values["data"].get("root")):
        values["data"]["root"] = os.path.abspath(Path(root).expanduser())  # the folder may be opened from anywhere
    write_atomically(folder / CONFIG, to_yaml(values))
    if started_from is not None:
        write_json(folder / "environment.json", environment(device, precision) | {"started_from": started_from})
    elif not (folder / "environment.json").exists():
        write_json(folder / "environment.json", environment(device, precision))


def read_config(folder: Path, *, trust_code: bool = False) -> RunConfig:
    """Return the configuration of a run folder.

    Without `trust_code` no class of somebody's own that it names is imported, and what needs one refuses to be built.
    """
    path = folder / CONFIG
    if not path.exists():
        raise UserError(
            f"{folder}: is not a run folder (it has no {CONFIG}); give the folder that a run was written to"
        )
    values = read_yaml(path)
    if not values:
        raise UserError(f"{path}: is empty; restore it, or give another run folder")
    return parse_config(values, {}, origin=str(path), trust=EVERYTHING if trust_code else NOTHING)


def differences(before: RunConfig, after: RunConfig) -> list[str]:
    """Name the dotted keys whose values differ, except those that a resumed run may change."""
    old, new = (dict(flatten(config.model_dump(mode="json", by_alias=True))) for config in (before, after))
    changed = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    return [key for key in changed if not any(key == free or key.startswith(f"{free}.") for free in MAY_DIFFER)]


def distinct_names(folders: Sequence[Path], reserved: Collection[str] = ()) -> list[str]:
    """Return a name for each folder: its own, with what is above where two are alike, a number where that is no help.

    `reserved` names are not used.
    """
    parts = [Path(os.path.abspath(folder)).parts[1:] or ("root",) for folder in folders]
    names = list[str]()
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names) and not set(names) & set(reserved):
            return names
    return [f"{number} {own[-1]}" for number, own in enumerate(parts, 1)]


def environment(device: str, precision: str) -> dict[str, Any]:
    """Return versions, device and the state of the source, for whoever wants to repeat the run."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "precision": precision,
        "cpu_cores": os.cpu_count(),
        "command": sys.argv[1:],
        "versions": {name: version_of(name) for name in VERSIONS},
        "git": _git_state(),
    }


def log_to_file(folder: Path) -> logging.Handler:
    """Append the package's log to `log.txt` of the folder."""
    handler = logging.FileHandler(folder / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    package = logging.getLogger("perceptual_mae")
    package.addHandler(handler)
    package.setLevel(min(package.getEffectiveLevel(), logging.INFO))
    return handler


_ABSENT = object()


def _names(out: Path) -> Iterator[Path]:
    yield out
    number = 2
    while True:
        yield out.with_name(f"{out.name}-{number}")
        number += 1


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and all(each.name in LEFT_BY_A_START for each in path.iterdir()))


def version_of(name: str) -> str | None:
    """Return the installed version of a distribution, or None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Return commit and cleanliness of the source tree, or None where it is not a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "modified": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None
