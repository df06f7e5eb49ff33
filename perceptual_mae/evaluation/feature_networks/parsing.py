"""`--features` read and opened: KIND:WORDS,option=value,... or a TorchScript file by its path."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter

from perceptual_mae.config.own_kinds import import_own
from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.evaluation.feature_networks import FEATURE_NETWORKS, FeatureNetwork
from perceptual_mae.evaluation.feature_networks.feature_network import CLEAN_RESIZE
from perceptual_mae.images import Size

TRUST = "trust_code"
"""The option that a kind has which runs what is in a file; the command line sets it, never the text."""
SCRIPTS = (".pt", ".pt2", ".pth", ".ts", ".jit", ".torchscript")


def open_features(text: str, size: Size, device: torch.device, *, trust_code: bool = False) -> FeatureNetwork:
    """Return the network that a text of `--features` names, on the device, its `metadata` with dim, classes and input.

    It looks at one black image of `size` first. trust_code: whether a file that is a program may run. Raises UserError
    where the text, the file or the size does not fit.
    """
    kind, words, options = parse(text)
    name = options.pop("name", None)
    make = network_of_kind(kind)
    if TRUST in inspect.signature(make).parameters:
        options[TRUST] = trust_code
    try:
        network = make(words, **options)
    except UserError:
        raise
    except ValueError as mistake:
        raise UserError(f"--features {text}: {mistake}") from mistake
    if not isinstance(network, FeatureNetwork):
        raise UserError(f"--features {text}: {kind} returned a {type(network).__name__}, not a FeatureNetwork")
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
        "resize": "none" if network.size in (None, size) else CLEAN_RESIZE,
    }
    return replace(network, name=name or network.name, metadata=metadata)


def parse(text: str) -> tuple[str, str, dict[str, Any]]:
    """Return kind, words and options. Raises UserError, naming what there is, for what is unknown."""
    head, *parts = text.split(",")
    while parts and "=" not in parts[0]:  # a comma of the file's own name
        head = f"{head},{parts.pop(0)}"
    kind, _, words = head.partition(":")
    if kind not in FEATURE_NETWORKS:
        if own := re.fullmatch(r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::(.*))?", head) if not _is_script(head) else None:
            kind, words = own[1], own[2] or ""
        elif _is_script(head):
            kind, words = "torchscript", head
        else:
            hint = did_you_mean(kind, FEATURE_NETWORKS) or f"; choose from: {', '.join(FEATURE_NETWORKS)}"
            raise UserError(f"--features {text}: is no file and no kind of network{hint}")
    if not words and kind in EXAMPLES:
        raise UserError(f"--features {text}: say which, as {EXAMPLES[kind]}")
    make = network_of_kind(kind)
    known = [name for name in [*[*inspect.signature(make).parameters][1:], "name"] if name != TRUST]
    options = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in known:
            hint = did_you_mean(key, known) or f"; there are: {', '.join(known)}"
            raise UserError(f"--features {text}: {kind} has no option {key!r}{hint}")
        try:
            options[key] = READERS[key](value) if key in READERS else _as_annotated(make, key, value)
        except (ValueError, KeyError) as error:
            should = f" as {key}={SHAPES[key]}" if key in SHAPES else " another value"
            raise UserError(f"--features {text}: {key}={value} should be{should}") from error
    return kind, words, options


def network_of_kind(kind: str) -> Callable[..., FeatureNetwork]:
    """Return the table's line, or what `package.module:function` names; UserError where that is none."""
    if kind in FEATURE_NETWORKS:
        return FEATURE_NETWORKS[kind]
    try:
        return import_own(kind, "feature network", [("words",)])
    except ValueError as mistake:
        hint = did_you_mean(kind.partition(":")[0], FEATURE_NETWORKS)
        raise UserError(f"--features {kind}: {mistake}{hint}") from mistake


def open_all(
    texts: Sequence[str], size: Size, device: torch.device, *, trust_code: bool = False
) -> list[FeatureNetwork]:
    """Return the networks of several texts; two of one name need another (`name=`)."""
    networks = [open_features(text, size, device, trust_code=trust_code) for text in texts]
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


def _is_script(head: str) -> bool:
    """Tell whether words without a kind name a file; what has a `module:name` in front is none unless it is there."""
    is_named = head.endswith(SCRIPTS) and ":" not in head
    return is_named or Path(head).expanduser().is_file()


def _as_annotated(make: Callable[..., Any], key: str, value: str) -> Any:
    """Return an option's text as the type that the function says, or as text."""
    return TypeAdapter(get_type_hints(make).get(key, str)).validate_python(value)


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
