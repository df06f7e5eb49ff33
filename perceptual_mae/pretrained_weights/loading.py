"""Weights from a file that the user gives: checked before they are read, and whole before they are used."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from perceptual_mae.pretrained_weights import registry

RANDOM = "random"
"""What `weights` is for a network that was trained on nothing."""

_WRAPPERS = ("state_dict", "model", "params")  # names under which training scripts put a state dict
_COUNTER = "num_batches_tracked"  # of a norm; files older than PyTorch 0.4.1 have none, and nothing here reads it


def read_weights(what: str, weights: str, sha256: str | None = None, *, hint: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file: safetensors, or a state dict that `torch.save` wrote.

    weights: its path, or a name that `pmae weights list` shows, for the published file in the folder of weights.
    sha256: what the file must have, 64 hexadecimal digits or the first 8 and more. Raises ValueError of one line where
    the file is not there (with `hint`, what to do), is another one, or holds something else; pickled code is never run.
    """
    path, published = registry.locate(weights)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        fetch = f", or get the file: pmae weights fetch {weights}" if weights in registry.FOREIGN_WEIGHTS else ""
        raise ValueError(f"the weights of {what}: {path} {problem}; {hint or _hint(what)}{fetch}")
    for expected in filter(None, (sha256, published)):
        registry.check_sha256(path, expected)
    try:
        held = _read(path)
    except Exception as error:  # what is no weights may fail in any way
        raise ValueError(
            f"the weights of {what}: {path} is neither a safetensors file nor a state dict that torch.save wrote "
            "(a pickled network is not opened: save its state_dict() where its code is installed)"
        ) from error
    for name in _WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"the weights of {what}: {path} holds no tensors by name; {hint or _hint(what)}")
    return {str(name).removeprefix("module."): value for name, value in held.items()}


def is_random(what: str, weights: str | None, sha256: str | None) -> bool:
    """Tell whether random weights are wanted; ValueError where nothing is given, or a sum of what is no file."""
    if weights is None:
        raise ValueError(f"{what} has no weights; {_hint(what)}")
    if weights == RANDOM and sha256 is not None:
        raise ValueError("random weights have no sha256; remove it, or set `weights` to a file")
    return weights == RANDOM


def copy_state(network: nn.Module, state: Mapping[str, Tensor | None], what: str, origin: str) -> None:
    """Load tensors by the network's own names, all of them; ValueError names what is missing or of another shape."""
    own = network.state_dict()
    missing = [name for name in own if state.get(name) is None and not name.endswith(_COUNTER)]
    loaded = {name: value for name, value in state.items() if value is not None and name in own}
    reshaped = [name for name, value in loaded.items() if value.shape != own[name].shape]
    if missing or reshaped:
        kinds = (("missing", missing), ("of another shape", reshaped))
        differences = "; ".join(f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds if names)
        raise ValueError(f"the weights of {what}: {origin} are those of another network, tensors {differences}")
    network.load_state_dict(loaded, strict=False)


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a TorchScript file is none of weights: it is refused, as others are
        return torch.load(path, map_location="cpu", weights_only=True)


def _hint(what: str) -> str:
    return f"set `weights` to a file of {what} (.safetensors, or what torch.save wrote), or to {RANDOM} to try without"
