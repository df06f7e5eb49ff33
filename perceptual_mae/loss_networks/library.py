"""Any network of torchvision or timm as loss network, by its name, a file of weights and the names of layers."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from perceptual_mae.errors import did_you_mean
from perceptual_mae.loss_networks.frozen import IMAGENET, Features, FrozenNetwork
from perceptual_mae.pretrained_weights.loading import copy_state, is_random, read_weights


def named(
    size: tuple[int, int],
    channels: int,
    *,
    name: str,
    layers: tuple[str, ...],
    library: Literal["torchvision", "timm"] = "torchvision",
    weights: str | None = None,
    sha256: str | None = None,
    mean: tuple[float, float, float] = IMAGENET[0],
    std: tuple[float, float, float] = IMAGENET[1],
    image_size: int | None = None,
) -> FrozenNetwork:
    """A network of torchvision or timm by its name: features of the named layers.

    Takes images (B, C, H, W) in [0, 1], which are normalised by `mean` and `std`.

    Options:
        name: the library's name of the network, such as resnet50 [none]
        layers: layers whose features are compared: of torchvision, nodes of its graph (features.4, layer2); of timm,
            those in feature_info (layer1, blocks.5) [none]
        library: the library that builds the network [ours]
        weights: file of that library's state dict, a name of `pmae weights list`, or "random"; must be given [none]
        sha256: SHA-256 that the file must have, or its first 8 digits or more; null checks none [none]
        mean: mean of each channel that images are normalised by [ImageNet]
        std: standard deviation of each channel that images are normalised by [ImageNet]
        image_size: pixels of the shorter side to which images are enlarged for it; null: as they are [ours]

    Raises ValueError for unknown names and files that do not fit, ImportError where the library is not installed.
    """
    if not layers:
        raise ValueError(f"{name} needs at least one of its layers")
    random = is_random(name, weights, sha256)
    state = None
    if not random and torch.get_default_device().type != "meta":
        state = read_weights(name, str(weights), sha256)
    build = {"torchvision": _from_torchvision, "timm": _from_timm}[library]
    network = build(name, layers, state, str(weights))
    frozen = FrozenNetwork(name, network, size, channels, mean, std, image_size)
    frozen.is_random = random
    return frozen.to(memory_format=torch.channels_last)


class _Values(nn.Module):
    """The values of a network that returns a mapping: maps (B, C_j, H_j, W_j) of images (B, 3, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Features:
        return tuple(self.network(images).values())


class _Intermediates(nn.Module):
    """The stages of a timm network: maps (B, C_j, H_j, W_j) of images (B, 3, H, W)."""

    def __init__(self, network: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.network, self.indices = network, indices

    def forward(self, images: Tensor) -> Features:
        forward_intermediates: Any = self.network.forward_intermediates
        return tuple(forward_intermediates(images, indices=self.indices, intermediates_only=True))


def _from_torchvision(name: str, layers: Sequence[str], state: dict[str, Tensor] | None, origin: str) -> nn.Module:
    """Return a network of torchvision that gives the maps of its nodes `layers`, with the weights of a state dict."""
    if name not in models.list_models():
        raise ValueError(f"torchvision has no network {name!r}{did_you_mean(name, models.list_models())}")
    network = models.get_model(name, weights=None).eval()
    try:
        extractor = create_feature_extractor(network, list(dict.fromkeys(layers)))
    except ValueError as error:
        _, nodes = get_graph_node_names(network, suppress_diff_warning=True)
        _check_layers(name, layers, [prefix for node in nodes[1:] for prefix in _prefixes(node)])
        raise ValueError(f"{name} cannot be traced for features: {error}") from error
    if state is not None:
        copy_state(extractor, {key: state.get(key) for key in extractor.state_dict()}, name, origin)
    return _Values(extractor)


def _from_timm(name: str, layers: Sequence[str], state: dict[str, Tensor] | None, origin: str) -> nn.Module:
    """Return a network of timm that gives the maps of its stages `layers`, with the weights of a state dict."""
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}{did_you_mean(name, timm.list_models())}")
    network: Any = timm.create_model(name, pretrained=False)
    if not hasattr(network, "prune_intermediate_layers"):
        raise ValueError(f"timm's {name} does not return its stages; choose another network")
    known = [stage["module"] for stage in network.feature_info]
    _check_layers(name, layers, known)
    indices = sorted({known.index(layer) for layer in layers})
    network.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
    if state is not None:
        copy_state(network, {key: state.get(key) for key in network.state_dict()}, name, origin)
    return _Intermediates(network, indices)


def _check_layers(name: str, layers: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError, with similar names, for a layer that the network lacks."""
    for layer in layers:
        if layer not in known:
            hint = did_you_mean(layer, known) or f"; choose from: {_shorten(list(dict.fromkeys(known)))}"
            raise ValueError(f"{name} has no layer {layer!r}{hint}")


def _prefixes(node: str) -> list[str]:
    parts = node.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _shorten(known: Sequence[str], limit: int = 12) -> str:
    """List the outermost names."""
    depth = min((name.count(".") for name in known), default=0)
    outer = [name for name in known if name.count(".") <= depth + 1]
    return ", ".join(outer[:limit]) + (", ..." if len(outer) > limit else "")
