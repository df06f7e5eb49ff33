"""A sweep's folder: sweep.json records what it was started with and how its cells ended; each cell is a run folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perceptual_mae.config.layers import flatten
from perceptual_mae.config.parsing import RunConfig, load_config
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_json
from perceptual_mae.run.folder import CONFIG, read_config
from perceptual_mae.run.lock import is_unused
from perceptual_mae.sweep.grid import Axis, Cell
from perceptual_mae.training.initial_discriminator import check_discriminator_start
from perceptual_mae.training.initial_weights import check_start

RECORD = "sweep.json"
MAY_DIFFER = ("data.root", "data.workers", "tracking")
"""What may change from one start of a sweep to the next; what scores stand on may not, for finished runs stay."""

State = Literal["finished", "begun", "new"]


@dataclass(frozen=True)
class Planned:
    """A cell with its configuration, its folder, and how far it came before."""

    cell: Cell
    arguments: list[str]
    config: RunConfig
    path: Path
    state: State


def plan(base: Sequence[str], cells: Sequence[Cell], out: Path) -> list[Planned]:
    """Resolve every cell and read its state. Writes nothing.

    Raises UserError for mistakes of the configuration, images or an encoder to start from that are not there, a folder
    that is something else's, a base that has changed since, and two cells that are the same run.
    """
    check_base(out, load_config(base))
    planned = list[Planned]()
    for cell in cells:
        arguments = cell.arguments(base)
        config, path = load_config(arguments), out / cell.name
        planned.append(Planned(cell, arguments, config, path, state_of(path, config)))
    for number, each in enumerate(planned):
        if twin := next((other for other in planned[:number] if other.config == each.config), None):
            raise UserError(f"--grid: {each.cell.name} and {twin.cell.name} are the same run; leave one out")
    checked = list[Any]()
    for each in planned:
        if each.config.data not in checked and each.state != "finished":
            checked.append(each.config.data)
            for split in ("train", each.config.evaluation.split):
                each.config.data.build(split)
        check_start(each.config, each.path / "checkpoints")
        check_discriminator_start(each.config, each.path / "checkpoints")
    return planned


def check_base(out: Path, base: RunConfig) -> None:
    """Refuse a folder that holds something else, or a sweep over another base."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another folder with --out")
    if is_unused(out):
        return
    record = read_record(out)
    if record is None:
        raise UserError(f"{out}: holds files that are not a sweep's; choose an empty folder with --out")
    changed = differing(record["base"], base.model_dump(mode="json", by_alias=True))
    if changed:
        raise UserError(
            f"{out}: was begun with other values of {', '.join(changed)}; repeat its command to go on with it, "
            "or choose another --out"
        )


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name the dotted keys whose values differ, but for those that may."""
    old, new = dict(flatten(before)), dict(flatten(after))
    changed = [key for key in {**old, **new} if old.get(key, ...) != new.get(key, ...)]
    return [key for key in changed if not any(key == free or key.startswith(f"{free}.") for free in MAY_DIFFER)]


def state_of(path: Path, config: RunConfig) -> State:
    """Tell how far a cell came. Raises UserError where its folder holds a run of other values."""
    if not (path / CONFIG).exists():
        return "new"
    wanted, there = (each.model_dump(mode="json", by_alias=True) for each in (config, read_config(path)))
    if changed := differing(there, wanted):
        raise UserError(f"{path}: holds a run with other values of {', '.join(changed)}; choose another --out")
    return "finished" if (path / "summary.json").exists() else "begun"


def read_record(out: Path) -> dict[str, Any] | None:
    """Return the content of sweep.json, or None where there is none."""
    path = out / RECORD
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return record if "base" in record else None
    except ValueError:
        return None


def finished_unrecorded(out: Path, planned: Sequence[Planned]) -> dict[str, dict[str, Any]]:
    """Return records of cells that are finished though sweep.json does not say so: a call was killed meanwhile."""
    before = (read_record(out) or {}).get("cells", {})
    finished = [each.cell.name for each in planned if each.state == "finished"]
    return {name: {"status": "finished"} for name in finished if before.get(name, {}).get("status") != "finished"}


def write_record(
    out: Path, base: Sequence[str], axes: Sequence[Axis], seeds: Sequence[int], cells: dict[str, dict[str, Any]]
) -> None:
    """Write sweep.json; cells: by name how those that were run have ended, those of earlier starts stay."""
    before = read_record(out) or {}
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "layers": list(base),
        "base": load_config(base).model_dump(mode="json", by_alias=True),
        "grid": {axis.key: list(axis.values) for axis in axes},
        "seeds": list(seeds),
        "cells": {**before.get("cells", {}), **cells},
    }
    write_json(out / RECORD, record)
