"""Classifiers of torchvision and timm by name, with a file of their weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceptual_mae.errors import UserError, did_you_mean
from perceptual_mae.evaluation.feature_networks.feature_network import FeatureNetwork, Normalised
from perceptual_mae.evaluation.feature_networks.torchscript import Color
from perceptual_mae.images import Size
from perceptual_mae.loss_networks.frozen import IMAGENET
from perceptual_mae.pretrained_weights.loading import copy_state, read_weights
from perceptual_mae.pretrained_weights.registry import locate, sha256_of

FILE_HINT = "give its state dict (.safetensors, or what torch.save wrote)"


def torchvision(
    words: str,
    *,
    sha256: str | None = None,
    layer: str | None = None,
    classes: int | None = None,
    size: Size | None = None,
    mean: Color = IMAGENET[0],
    std: Color = IMAGENET[1],
) -> FeatureNetwork:
    """Return torchvision's network for `words` NAME:FILE.

    Features are what goes into its last linear or convolutional layer, averaged over places, or with `layer` what
    comes out of the layer of that name. classes: the number that the file was trained for, where it is another one.
    """
    from torchvision import models

    name, file = _split("torchvision", words)
    if name not in models.list_models(module=models):
        hint = did_you_mean(name, models.list_models(module=models))
        raise UserError(f"--features: torchvision has no classifier {name!r}{hint}")
    network = models.get_model(name, weights=None, **({} if classes is None else {"num_classes": classes}))
    return _filled("torchvision", name, network, file, sha256, layer, size, mean, std)


def timm(
    words: str,
    *,
    sha256: str | None = None,
    layer: str | None = None,
    classes: int | None = None,
    size: Size | None = None,
    mean: Color | None = None,
    std: Color | None = None,
) -> FeatureNetwork:
    """Return timm's network for `words` NAME:FILE, as `torchvision` does; mean and std are by default timm's for it."""
    import timm as library  # seconds to import

    name, file = _split("timm", words)
    if not library.is_model(name):
        raise UserError(f"--features: timm has no network {name!r}{did_you_mean(name, library.list_models())}")
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    network: Any = library.create_model(name, pretrained=False, **options)
    known = network.pretrained_cfg
    return _filled("timm", name, network, file, sha256, layer, size, mean or known["mean"], std or known["std"])


class Tapped(nn.Module):
    """A classifier that returns (features, logits): what enters its last layer, or leaves the one called `layer`."""

    def __init__(self, network: nn.Module, layer: str | None = None) -> None:
        super().__init__()
        self.network = network
        self._caught: Tensor | None = None
        if layer is None:
            last = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
            last.register_forward_pre_hook(lambda _, inputs: self._catch(inputs[0]))
        else:
            tapped = network.get_submodule(layer)
            tapped.register_forward_hook(lambda _, inputs, output: self._catch(output))

    def _catch(self, features: Tensor) -> None:
        self._caught = features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        features, self._caught = self._caught, None
        assert features is not None, "the tapped layer did not run"
        return features, logits


def _split(library: str, words: str) -> tuple[str, str]:
    name, _, file = words.partition(":")
    if not name or not file:
        raise UserError(f"--features {library}:{words}: name network and file, as {library}:resnet50:resnet50.pth")
    return name, file


def _filled(
    library: str,
    name: str,
    network: nn.Module,
    file: str,
    sha256: str | None,
    layer: str | None,
    size: Size | None,
    mean: Color,
    std: Color,
) -> FeatureNetwork:
    if layer is not None and layer not in dict(network.named_modules()):
        hint = did_you_mean(layer, dict(network.named_modules()))
        raise UserError(f"--features: {name} has no layer {layer!r}{hint}")
    path, _ = locate(file)
    copy_state(network, dict(read_weights(name, file, sha256, hint=FILE_HINT)), name, file)
    module = Normalised(Tapped(frozen(network), layer), mean, std)
    metadata = {"kind": library, "network": name, "layer": layer, "mean": list(mean), "std": list(std)}
    return FeatureNetwork(name, module, size, metadata | {"file": Path(path).name, "sha256": sha256_of(path)})


def frozen(network: nn.Module) -> nn.Module:
    """Return a network whose weights and norm statistics stand still."""
    return network.to(torch.float32).requires_grad_(False).eval()
