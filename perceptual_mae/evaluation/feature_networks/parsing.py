"""`--features` read and opened: KIND:WORDS,option=value,... or a TorchScript file by its path."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.evaluation.feature_networks import FEATURE_NETWORKS, FeatureNetwork
from perceptual_mae.images import Size

SCRIPTS = (".pt", ".pt2", ".pth", ".ts", ".jit", ".torchscript")


def open_features(text: str, size: Size, device: torch.device) -> FeatureNetwork:
    """Return the network that a text of `--features` names, on the device, its `metadata` with dim, classes and input.

    It looks at one black image of `size` first. Raises UserError where the text, the file or the size does not fit.
    """
    kind, words, options = parse(text)
    name = options.pop("name", None)
    try:
        network = FEATURE_NETWORKS[kind](words, **options)
    except UserError:
        raise
    except ValueError as mistake:
        raise UserError(f"--features {text}: {mistake}") from mistake
    network.module.to(device)
    try:
        extracted = network.extract(torch.zeros(1, 3, *size, device=device))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[-150:]
        height, width = network.size or size
        raise UserError(
            f"--features {text}: cannot look at images of {height}x{width} pixels; give a size it takes, as "
            f"{text},size=224 ({reason})"
        ) from error
    if extracted.features.ndim != 2:
        raise UserError(f"--features {text}: returns features of {extracted.features.ndim} dimensions, not (images, D)")
    metadata = network.metadata | {
        "dim": extracted.features.shape[1],
        "classes": None if extracted.probabilities is None else extracted.probabilities.shape[1],
        "input": list(network.size or size),
        "resize": "none" if network.size in (None, size) else "bicubic, antialiased, not rounded (clean-fid)",
    }
    return replace(network, name=name or network.name, metadata=metadata)


def parse(text: str) -> tuple[str, str, dict[str, Any]]:
    """Return kind, words and options. Raises UserError, naming what there is, for what is unknown."""
    head, *parts = text.split(",")
    while parts and "=" not in parts[0]:  # a comma of the file's own name
        head = f"{head},{parts.pop(0)}"
    kind, _, words = head.partition(":")
    if kind not in FEATURE_NETWORKS:
        if not (Path(head).expanduser().is_file() or head.endswith(SCRIPTS)):
            hint = did_you_mean(kind, FEATURE_NETWORKS) or f"; choose from: {', '.join(FEATURE_NETWORKS)}"
            raise UserError(f"--features {text}: is no file and no kind of network{hint}")
        kind, words = "torchscript", head
    if not words and kind != "inception":
        raise UserError(f"--features {text}: say which, as {EXAMPLES[kind]}")
    known = [*[*inspect.signature(FEATURE_NETWORKS[kind]).parameters][1:], "name"]
    options = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in known:
            hint = did_you_mean(key, known) or f"; there are: {', '.join(known)}"
            raise UserError(f"--features {text}: {kind} has no option {key!r}{hint}")
        try:
            options[key] = READERS.get(key, str)(value)
        except (ValueError, KeyError) as error:
            raise UserError(f"--features {text}: {key}={value} should be as {key}={SHAPES[key]}") from error
    return kind, words, options


def open_all(texts: Sequence[str], size: Size, device: torch.device) -> list[FeatureNetwork]:
    """Return the networks of several texts; two of one name need another (`name=`)."""
    networks = [open_features(text, size, device) for text in texts]
    names = [network.name for network in networks]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(
                f"--features: two networks are called {name}; give one another name, as {texts[number]},name=other"
            )
    return networks


EXAMPLES = {
    "torchscript": "torchscript:FILE",
    "torchvision": "torchvision:resnet50:FILE",
    "timm": "timm:resnet18:FILE",
    "cifar_resnet": "cifar_resnet:FILE",
    "run": "run:FOLDER",
}


def _size(text: str) -> Size:
    sides = [int(side) for side in text.split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides[0], sides[-1]


def _color(text: str) -> tuple[float, float, float]:
    red, green, blue = (float(part) for part in text.split("/"))
    return red, green, blue


READERS: dict[str, Callable[[str], Any]] = {
    "size": _size,
    "mean": _color,
    "std": _color,
    "classes": int,
    "ema": {"yes": True, "no": False}.__getitem__,
}
SHAPES = {"size": "224 or 192x256", "mean": "0.5/0.5/0.5", "std": "0.5/0.5/0.5", "classes": "10", "ema": "yes or no"}
