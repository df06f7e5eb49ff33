"""Checkpoints: written under another name and renamed, verified before they are trusted, pruned last.

A checkpoint is a folder `step_00001234/` of safetensors files, `state.json` (small metadata) and `manifest.json` (size
and SHA-256 of every file). A folder without a manifest that fits is not a checkpoint.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from perceptual_mae.errors import UserError

log = logging.getLogger(__name__)

_NAME = re.compile(r"step_\d{8,}")


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> Path:
    """Write one checkpoint of named tensor groups (one file each) and JSON metadata; return its folder.

    Everything is written to a folder of another name and renamed when complete. Raises UserError when the disk is
    full; older checkpoints are then untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, group in tensors.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in group.items()}, partial / _file(name))
        _write_json(partial / "state.json", metadata)
        files = sorted(path for path in partial.iterdir())
        _write_json(partial / "manifest.json", {path.name: _fingerprint(path) for path in files})
        for path in (*partial.iterdir(), partial):
            _flush_to_disk(path)
        replaced = (
            folder / f".{final.name}.replaced"
        )  # the same step again: out of the way, and gone once it is replaced
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        _flush_to_disk(folder)
    except (OSError, SafetensorError) as failure:
        shutil.rmtree(partial, ignore_errors=True)
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


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, whole or not, in the order of their steps; other names are somebody else's."""
    return sorted((path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def newest(folder: Path, groups: Iterable[str] = ("generator",)) -> Path | None:
    """Return the newest checkpoint of a folder whose files are all what its manifest says, None where there is none.

    groups: of tensors, each of which it must have. Raises UserError where there are checkpoints and none is whole:
    starting over in silence would lose the run.
    """
    flaws = []
    for path in reversed(checkpoints(folder)):
        if (flaw := corruption(path, groups)) is None:
            return path
        log.warning("%s is not used: %s", path, flaw)
        flaws.append(f"{path.name}: {flaw}")
    if flaws:
        raise UserError(
            f"{folder}: no checkpoint is whole ({'; '.join(flaws)}); "
            "restore one from a copy, or start over with --fresh"
        )
    return None


def corruption(path: Path, groups: Iterable[str] = ("generator",)) -> str | None:
    """Say what is wrong with a checkpoint, or return None: every file must have its size and SHA-256.

    groups: of tensors that it must have.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if not isinstance(manifest, dict) or not {"state.json", *map(_file, groups)} <= manifest.keys():
            return f"its manifest does not list {''.join(f'a {group} and ' for group in groups)}its state"
        wrong = [name for name, print_ in manifest.items() if _fingerprint(path / name) != print_]
    except (OSError, ValueError) as failure:
        return f"its manifest or a file cannot be read ({failure})"
    return f"{', '.join(wrong)} changed since it was written" if wrong else None


def load_tensors(path: Path, name: str) -> dict[str, Tensor] | None:
    """Return one group of tensors of a checkpoint, or None if it has no such group."""
    file = path / _file(name)
    return load_file(file) if file.exists() else None


def load_metadata(path: Path) -> dict[str, Any]:
    """Return the JSON metadata of a checkpoint: step, images_seen and what else the run kept."""
    metadata: dict[str, Any] = json.loads((path / "state.json").read_text())
    return metadata


def load_module(module: nn.Module, state: Mapping[str, Tensor] | None, origin: Path) -> None:
    """Load a network strictly; a checkpoint of another architecture is a UserError that names what differs."""
    if state is None:
        raise UserError(f"{origin}: holds no {type(module).__name__}; was it written by another configuration?")
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
    """Delete all checkpoints but the last `keep_last` up to step `latest` and the multiples of `keep_steps`.

    Those beyond `latest` belong to a future that was lost: the run went back before them because they were damaged.
    """
    steps = [step_of(path) for path in checkpoints(folder)]
    kept = [step for step in steps if step <= latest][-keep_last:]
    kept += [step for step in steps if keep_steps and step <= latest and step % keep_steps == 0]
    for path in checkpoints(folder):
        if step_of(path) not in kept:
            shutil.rmtree(path)


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
