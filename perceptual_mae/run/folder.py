"""A run's folder: claimed without harming anybody's files, resumed only by the run it belongs to."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perceptual_mae.config.layers import flatten, read_yaml, to_yaml
from perceptual_mae.config.own_kinds import EVERYTHING, NOTHING
from perceptual_mae.config.parsing import RunConfig, parse_config
from perceptual_mae.data import DATASETS
from perceptual_mae.errors import UserError
from perceptual_mae.files import naming, write_atomically, write_json
from perceptual_mae.run.lock import is_unused

CONFIG = "config.yaml"
MAY_DIFFER = (
    *("training.epochs", "training.accumulation", "training.max_skips", "training.rollback_lr", "training.log_every"),
    *("training.checkpoint_every", "training.checkpoint_minutes", "training.keep_last", "training.keep_every"),
    *("training.compile", "training.cuda_graphs", "training.tf32", "training.cudnn_benchmark"),
    "training.checkpoint_activations",
    *("data.root", "data.workers", "data.max_pixels", "data.max_unreadable", "data.eval_resize"),
    *("data.cache", "data.shard_cache"),
    *("tracking", "evaluation"),
)
"""What a resumed run may change: how long it trains and in which micro-batches, how its device computes, what it does
about steps that are not finite, where its images are, how it reads, saves, reports and evaluates."""

IMPORTED = "imported"
"""Under `started_from` of environment.json: the folder holds weights of others and no training of its own."""

VERSIONS = ("perceptual-mae", "torch", "torchvision", "accelerate", "numpy", "pillow", "pytorch-msssim", "safetensors")


def claim(out: Path, config: RunConfig, *, fresh: bool = False) -> Path:
    """Return the folder to train in: `out` where it is empty, new or the same run's, else a UserError.

    With `fresh` a folder that is in use is left alone and the first free name next to it is taken (`out-2`, ...).
    Nothing is written here.
    """
    if fresh:
        return next(path for path in _names(out) if not path.exists() or (path.is_dir() and not any(path.iterdir())))
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another folder with --out")
    if is_unused(out):
        return out
    if not (out / CONFIG).exists():
        raise UserError(f"{out}: holds files that are not a run's; choose an empty folder with --out")
    if is_imported(out):
        raise UserError(
            f"{out}: holds imported weights and no training to resume; train from them with "
            f"generator.init_from={out} and another --out"
        )
    if changed := differences(read_config(out), config):
        raise UserError(
            f"{out}: holds a run with other values of {', '.join(changed)}; repeat its command to resume it, "
            f"go on with other values in a new one (pmae pretrain {out} --from-checkpoint newest key=value --out NEW), "
            "or choose another --out, or --fresh for a new folder next to it"
        )
    check_not_emptied(out)
    return out


def check_not_emptied(folder: Path) -> None:
    """Raise UserError where a run's checkpoints have been deleted: starting over would delete its metrics, too.

    A run makes the folder `checkpoints` before its first record, and its first checkpoint may be long in coming.
    """
    metrics, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    if metrics.exists() and metrics.stat().st_size and not checkpoints.exists():
        raise UserError(
            f"{checkpoints}: is gone, but {metrics.name} shows that the run has trained; put it back to go on, "
            "or start over in another folder with --fresh"
        )


def describe(
    folder: Path,
    config: RunConfig,
    device: str,
    precision: str,
    started_from: dict[str, Any] | None = None,
    passed_over: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the resolved configuration of a run into its folder, and the environment.

    started_from: whose weights the encoder starts with, if it is about to. passed_over: damaged checkpoints that the
    run goes on from before, by name what is wrong with them; they are added to those of earlier starts.
    """
    write_atomically(folder / CONFIG, to_yaml(resolved(config)))
    path = folder / "environment.json"
    known = None if started_from is not None else _read_environment(path)
    values = environment(device, precision) if known is None else known
    if started_from is not None:
        values["started_from"] = started_from
    if passed_over:
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        now = [{"checkpoint": name, "reason": flaw, "resumed": when} for name, flaw in passed_over.items()]
        values["passed_over"] = [*values.get("passed_over", []), *now]
    if known is None or passed_over:
        write_json(path, values)


def resolved(config: RunConfig) -> dict[str, Any]:
    """Return the values of a configuration as they stand in config.yaml: the folder may be opened from anywhere."""
    values = config.model_dump(mode="json", by_alias=True)
    if config.data.kind in DATASETS and (root := values["data"].get("root")):
        values["data"]["root"] = os.path.abspath(Path(root).expanduser())
    return values


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
    changed = changes(before, after)
    return [key for key in changed if not any(key == free or key.startswith(f"{free}.") for free in MAY_DIFFER)]


def changes(before: RunConfig, after: RunConfig) -> dict[str, list[Any]]:
    """Return the dotted keys whose values differ, with both; None for a key that one of them lacks."""
    old, new = (dict(flatten(resolved(config))) for config in (before, after))
    return {
        key: [old.get(key), new.get(key)] for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    }


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


class LogFile(logging.FileHandler):
    """The package's log, appended to `log.txt` of a folder until it is closed; where it cannot be, an OSError."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "log.txt")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        package = logging.getLogger("perceptual_mae")
        package.addHandler(self)
        package.setLevel(min(package.getEffectiveLevel(), logging.INFO))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Let a full disk be an error as that of any other file; logging would print a traceback and go on."""
        failure = sys.exception()
        if not isinstance(failure, OSError):
            super().handleError(record)
            return
        logging.getLogger("perceptual_mae").removeHandler(self)  # what is still to be said is not lost here, too
        with naming(Path(self.baseFilename)):
            raise failure

    def close(self) -> None:
        """Let go of the file; what is left of a line that could not be written is dropped."""
        logging.getLogger("perceptual_mae").removeHandler(self)
        with suppress(OSError):
            super().close()


_ABSENT = object()


def _names(out: Path) -> Iterator[Path]:
    yield out
    number = 2
    while True:
        yield out.with_name(f"{out.name}-{number}")
        number += 1


def is_imported(path: Path) -> bool:
    """Tell whether a run's folder holds weights of others and no training of its own."""
    try:
        environment = json.loads((path / "environment.json").read_text())
    except (OSError, ValueError):
        return False
    return bool((environment.get("started_from") or {}).get(IMPORTED))


def version_of(name: str) -> str | None:
    """Return the installed version of a distribution, or None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read_environment(path: Path) -> dict[str, Any] | None:
    """Return what is known of a run's environment, or None where that is not there or broken."""
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _git_state() -> dict[str, Any] | None:
    """Return commit and cleanliness of the source tree, or None where it is not a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "modified": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None
