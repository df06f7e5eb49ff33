"""Checkpoints: written under another name and renamed, verified before they are trusted, pruned last.

A checkpoint is a folder `step_00001234/` of safetensors files, one for each group of tensors, `state.json` (small
metadata) and `manifest.json` (size and SHA-256 of every file). A folder without a manifest that fits is not a
checkpoint; what a manifest does not list is never read.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from perceptual_mae.errors import UserError
from perceptual_mae.files import naming, replacing, write_json

log = logging.getLogger(__name__)

GENERATOR = ("generator",)
"""The group of tensors that every use of a checkpoint needs."""

_NAME = re.compile(r"step_[0-9]{8,}")


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> Path:
    """Write one checkpoint of named tensor groups (one file each) and JSON metadata; return its folder.

    Everything is written to a folder of another name and renamed when complete. Raises UserError when the disk is
    full; older checkpoints are then untouched.
    """
    final = folder / f"step_{step:08d}"
    partial, replaced = (folder / f".{final.name}.{end}" for end in ("partial", "replaced"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        partial.mkdir()
        for name, group in tensors.items():
            write_tensors(partial / _file(name), group)
        write_json(partial / "state.json", {**metadata, "step": step})
        files = sorted(path for path in partial.iterdir())
        write_json(partial / "manifest.json", {path.name: _fingerprint(path) for path in files})
        for path in (*partial.iterdir(), partial):
            _flush_to_disk(path)
        _remove(replaced)
        if os.path.lexists(final):  # the same step again: out of the way, and gone once it is replaced
            final.rename(replaced)
        partial.rename(final)
        _remove(replaced)
        _flush_to_disk(folder)
    except (OSError, SafetensorError) as failure:
        with suppress(OSError):
            _remove(partial)
            if not os.path.lexists(final) and replaced.is_dir():
                replaced.rename(final)
        full = getattr(failure, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(failure).lower()
        if "os error" not in str(failure).lower() and not isinstance(failure, OSError):  # safetensors' own OSError
            raise
        last = next((path for path in reversed(checkpoints(folder)) if corruption(path, tensors) is None), None)
        reason = "the disk is full" if full else str(failure)
        raise UserError(
            f"{final}: could not write the checkpoint ({reason}); "
            + (f"the last one, {last.name}, is intact; " if last else "")
            + "free some space (training.keep_last bounds it) and run the same command again"
        ) from failure
    return final


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to a safetensors file, whole or not at all; an OSError names it."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replacing(path) as partial, naming(path):
        try:
            save_file(contiguous, partial)
        except SafetensorError as failure:  # it says "(os error 28)" where the disk is full
            if number := re.search(r"os error (\d+)", str(failure)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from failure
            raise


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, whole or not, in the order of their steps; other names are somebody else's."""
    return sorted((path for path in folder.glob("step_*") if is_name(path.name) and path.is_dir()), key=step_of)


def is_name(name: str) -> bool:
    """Tell whether a folder of this name may be a checkpoint."""
    return _NAME.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def newest(folder: Path, groups: Collection[str] = GENERATOR) -> Path | None:
    """Return the newest checkpoint of a folder whose files are all what its manifest says, None where there is none.

    groups: tensors that it must have. Raises UserError where there are checkpoints and none is whole: starting over in
    silence would lose the run.
    """
    return newest_whole(folder, groups)[0]


def newest_whole(folder: Path, groups: Collection[str]) -> tuple[Path | None, dict[str, str]]:
    """Return what `newest` does, and the newer ones that were passed over, by name what is wrong with them."""
    flaws = dict[str, str]()
    for path in reversed(checkpoints(folder)):
        if (flaw := corruption(path, groups)) is None:
            return path, flaws
        log.warning("%s is not used: %s", path, flaw)
        flaws[path.name] = flaw
    if flaws:
        raise UserError(
            f"{folder}: no checkpoint is whole ({'; '.join(f'{name}: {flaw}' for name, flaw in flaws.items())}); "
            "restore one from a copy, or start over with --fresh"
        )
    return None, flaws


def corruption(path: Path, groups: Collection[str] = GENERATOR) -> str | None:
    """Say what is wrong with a checkpoint, or return None.

    Every file must have its size and SHA-256 and no other may be there to be loaded, all `groups` of tensors must be
    among them, and the step of its state that of its name.
    """
    try:
        manifest = _read_manifest(path)
        if missing := sorted({"state.json", *map(_file, groups)} - manifest.keys()):
            return f"its manifest does not list {', '.join(missing)}"
        if foreign := [name for name in manifest if Path(name).name != name]:
            return f"its manifest lists {foreign[0]}, which is not in its folder"
        if wrong := [name for name, print_ in manifest.items() if _fingerprint(path / name) != print_]:
            return f"{', '.join(wrong)} changed since it was written"
        if unlisted := sorted({file.name for file in path.glob(_file("[!.]*"))} - manifest.keys()):
            return f"{', '.join(unlisted)} is not in its manifest"
        if (step := load_metadata(path).get("step")) != step_of(path):
            return f"it was written at step {step}, so this is not its name"
    except (OSError, ValueError) as failure:
        return f"its manifest or a file cannot be read ({failure})"
    return None


def has_group(path: Path, name: str) -> bool:
    """Tell whether a checkpoint has a group of tensors."""
    return _file(name) in _read_manifest(path)


def load_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Return one group of tensors of a checkpoint that is whole; raises UserError if it has no such group."""
    listed = has_group(path, name)
    if not listed or not (path / _file(name)).is_file():
        raise UserError(
            f"{path}: {'holds' if listed else 'its manifest lists'} no {_file(name)}, which is needed; "
            "restore the checkpoint from a copy, or remove its folder to go on from the one before"
        )
    return load_file(path / _file(name))


def load_metadata(path: Path) -> dict[str, Any]:
    """Return the JSON metadata of a checkpoint: step, images_seen and what else the run kept."""
    return _read_mapping(path / "state.json")


def load_module(module: nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Load a network strictly; a checkpoint of another architecture is a UserError that names what differs."""
    if misfit := state_dict_mismatch(module, state):
        raise UserError(
            f"{origin}: a checkpoint of another architecture: tensors {misfit}; "
            "use the configuration it was trained with"
        )
    module.load_state_dict(state)


def state_dict_mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Say which tensors a state lacks, has too many or of another shape for a network, the first of each by name."""
    own = module.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    shapes = [f"{key}, {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in reshaped[:1]]
    kinds = (("missing", missing, missing), ("unexpected", foreign, foreign), ("of another shape", reshaped, shapes))
    return "; ".join(f"{len(keys)} {kind} (first: {first[0]})" for kind, keys, first in kinds if keys) or None


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as flat tensors named `<parameter index>.<key>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, kept in state.items() for key, value in kept.items()}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned, each moment in the memory format of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        # Fused kernels walk parameter and moments in storage order: both need the same strides.
        same = value.shape == parameter.shape
        laid_out = torch.empty_like(parameter).copy_(value) if same else value.clone()
        state.setdefault(int(index), {})[key] = laid_out.detach()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def prune(folder: Path, latest: int, keep_last: int, keep_steps: int | None) -> None:
    """Delete the checkpoints before step `latest` but for the last `keep_last` and the multiples of `keep_steps`.

    Those beyond `latest` stay: if they are damaged, the run writes them again. Links are not ours.
    """
    steps = [step_of(path) for path in checkpoints(folder) if step_of(path) <= latest]
    kept = {*steps[-keep_last:], *(step for step in steps if keep_steps and step % keep_steps == 0)}
    old = [path for path in checkpoints(folder) if step_of(path) in set(steps) - kept and not path.is_symlink()]
    left_by_a_kill = [path for end in ("partial", "replaced") for path in folder.glob(f".step_*.{end}")]
    for path in [*old, *left_by_a_kill]:
        try:
            _remove(path)
        except OSError as failure:  # an old checkpoint that stays does no harm
            log.warning("%s could not be removed: %s", path, failure)


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _read_manifest(path: Path) -> dict[str, Any]:
    return _read_mapping(path / "manifest.json")


def _read_mapping(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return content


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link that has its name; nothing happens where there is neither."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a pipe would be waited for without end
        raise FileNotFoundError(errno.ENOENT, "is no file", str(path))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
