"""Tensors and plain settings from files of others, which nobody vouches for: nothing in them is run or unpacked.

Read are safetensors files, what `torch.save` wrote (tensors, containers, numbers, text and a plain argparse.Namespace,
by PyTorch's restricted unpickler), and folders with such a file or parts of it next to JSON files.
"""

import argparse
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from perceptual_mae.errors import UserError

WEIGHTS = (
    *("model.safetensors", "pytorch_model.bin"),
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
)
"""What a folder's weights are called, by transformers, timm and diffusers; others are taken where a folder has one file
alone."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
INDICES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
_WRAPPERS = ("model", "state_dict", "params")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class RawFile:
    """What a file or folder of weights holds.

    file: where the tensors are from. wrapper: the name that they were under, "" for none. args: the training script's
    options. config, preprocessor, generator: the JSON files of a folder (transformers or timm, transformers, ours).
    """

    file: Path
    tensors: dict[str, Tensor]
    wrapper: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)


def holds_weights(path: Path) -> bool:
    """Tell whether a path is a file, or a folder of weights that is neither a run's nor a checkpoint."""
    if not path.is_dir() or (path / "config.yaml").exists() or (path / "manifest.json").exists():
        return path.is_file()
    if path.parent.name == "checkpoints" and path.name.startswith("step_"):
        return False
    return _index_of(path) is not None or any(each.suffix in SUFFIXES for each in path.iterdir())


def read_raw(path: Path) -> RawFile:
    """Read a file or a folder of weights; raises UserError of one line where it is neither, or not safe to open.

    Tensors of lower precision become float32, which changes no value; NaN, infinity and empty tensors are refused.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; give a file of weights, a folder with one, or a run folder")
    if path.is_file():
        file, (tensors, wrapper, args) = path, _read_file(path)
        folder = path.parent if path.name in WEIGHTS else None
    elif (index := _index_of(path)) is not None:
        file, (tensors, wrapper, args), folder = index, (_read_parts(index), "", {}), path
    else:
        file, folder = _weights_of(path), path
        tensors, wrapper, args = _read_file(file)
    sidecars = {
        name: _read_json(folder / f"{stem}.json") if folder is not None else {}
        for name, stem in (("config", "config"), ("preprocessor", "preprocessor_config"), ("generator", "generator"))
    }
    return RawFile(
        file, {name: _checked(name, value, file) for name, value in tensors.items()}, wrapper, args, **sidecars
    )


def _weights_of(folder: Path) -> Path:
    """Return the one file of weights in a folder."""
    named = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    files = named[:1] or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(files) != 1:
        held = ", ".join(path.name for path in files[:3]) or "none"
        raise UserError(f"{folder}: needs one file of weights, such as {WEIGHTS[0]}, and has {held}; name the file")
    return files[0]


def _index_of(folder: Path) -> Path | None:
    """Return the file that says in which parts of a folder which tensors are; None where they are not in parts."""
    return next((folder / name for name in INDICES if (folder / name).is_file()), None)


def _read_parts(index: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that was written in parts; parts are files of the index's folder and no other."""
    folder, names = index.parent, _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: names no parts; copy the folder whole")
    tensors: dict[str, Tensor] = {}
    for part in sorted({str(name) for name in names.values()}):
        if Path(part).name != part or not (folder / part).is_file():
            raise UserError(f"{index}: the part {part!r} is not a file of this folder; copy the folder whole")
        tensors |= _read_file(folder / part)[0]
    if missing := sorted(names.keys() - tensors.keys()):
        raise UserError(f"{folder}: its parts lack {len(missing)} tensors (first: {missing[0]}); copy the folder whole")
    return tensors


def _read_file(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Return the tensors by name, the name they were under, and the training script's options."""
    try:
        held = load_file(path) if path.suffix == ".safetensors" else _load_pickled(path)
    except Exception as failure:  # what is no file of weights may fail in any way
        if _is_nvidias_pickle(path):
            raise UserError(
                f"{path}: a pickle of NVIDIA's, which is a program and is not run; where you trust it and have its "
                "code, save a plain state dict: torch.save(pickle.load(open(FILE, 'rb'))['D'].state_dict(), 'd.pt')"
            ) from failure
        raise UserError(
            f"{path}: is neither a safetensors file nor a state dict that torch.save wrote; tensors and plain values "
            f"alone are opened ({_first_line(failure)}); save its state_dict() where its code is installed"
        ) from failure
    args: dict[str, Any] = {}
    wrapper = ""
    if isinstance(held, Mapping):
        stated = held.get("args")
        args = dict(vars(stated)) if isinstance(stated, argparse.Namespace) else {}
        for name in _WRAPPERS:
            if isinstance(held.get(name), Mapping):
                held, wrapper = held[name], name
                break
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError(f"{path}: holds no tensors by name; give a file with the state_dict() of a network")
    return {_plain(str(name)): value for name, value in held.items()}, wrapper, args


def _is_nvidias_pickle(path: Path) -> bool:
    """Tell whether a file holds networks with their code, as StyleGAN2-ADA and its kin are published."""
    try:
        with path.open("rb") as file:
            head = file.read(2**20)
    except OSError:
        return False
    return b"torch_utils.persistence" in head or b"dnnlib.tflib" in head


def _load_pickled(path: Path) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _plain(name: str) -> str:
    """Return a name without what wrappers of networks put before it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _checked(name: str, value: Tensor, file: Path) -> Tensor:
    if not value.numel():
        raise UserError(f"{file}: the tensor {name} has no values; these weights are damaged")
    if not value.is_floating_point():
        return value
    if not bool(value.isfinite().all()):
        raise UserError(f"{file}: the tensor {name} has values that are not finite; these weights are damaged")
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise UserError(f"{path}: is not JSON ({_first_line(failure)}); copy the folder whole") from failure
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; copy the folder whole")
    return value


def _first_line(failure: BaseException) -> str:
    if type(failure).__name__ == "UnpicklingError":  # PyTorch's own advice is to open it all the same
        named = re.search(r"GLOBAL (\S+)", str(failure))
        return f"it asks for {named[1]}" if named else "it is no pickle of these"
    line = next(iter(str(failure).splitlines()), "") or type(failure).__name__
    return line if len(line) <= 120 else line[:117] + "..."
