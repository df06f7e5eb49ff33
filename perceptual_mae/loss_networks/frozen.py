"""A network that is looked through and never changes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from perceptual_mae.pretrained_weights.loading import copy_state, is_random, read_weights

Features = tuple[Tensor, ...]
"""What a network finds in images: (B, C_j, H_j, W_j), shallow to deep."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation that networks trained on ImageNet expect their images to be normalised with."""


class FrozenNetwork(nn.Module):
    """Features of images (B, C, H, W) in [0, 1], which are normalised here: (image - mean) / std.

    `network` takes RGB images and returns features. Its weights get no gradient and its norm statistics stand still
    whatever `train` says; the images' gradient passes. It computes in float32 (or the wider type of its weights) with
    autocast off. Greyscale images are shown three times. Raises ValueError where the images have other channels or
    are too small for it, and where its features are no maps.
    """

    mean: Tensor
    std: Tensor
    is_random: bool

    def __init__(
        self,
        name: str,
        network: nn.Module,
        size: tuple[int, int],
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"{name} takes RGB or greyscale images, not {channels} channels")
        self.name, self.is_random = name, False
        for module in network.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]  # it would overwrite features already handed out
        self.network = network.requires_grad_(False).eval()
        for statistic, values in (("mean", mean), ("std", std)):
            shape = (1, len(values), 1, 1)
            self.register_buffer(statistic, torch.tensor(values, dtype=torch.get_default_dtype()).view(shape))
        self._check_features(size)

    def forward(self, images: Tensor) -> Features:
        """Return the features of images (B, C, H, W) in [0, 1]."""
        with torch.autocast(images.device.type, enabled=False):
            normalised = (images.to(self.mean.dtype) - self.mean) / self.std  # (B, 3, H, W), from one channel too
            features: Features = self.network(normalised)
            return features

    def train(self, mode: bool = True) -> "FrozenNetwork":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def _check_features(self, size: tuple[int, int]) -> None:
        """Look at one black image; a network on the meta device does so for nothing."""
        device = next(self.network.parameters()).device
        try:
            features = self.network(torch.zeros(1, 3, *size, device=device, dtype=self.mean.dtype))
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(f"{self.name} cannot look at images of {size[0]}x{size[1]} pixels ({reason})") from error
        flat = [tuple(feature.shape) for feature in features if feature.ndim != 4]
        if flat:
            raise ValueError(f"{self.name}: features must be maps (B, C, H, W), but a layer returns {flat[0]}")


class Taps(nn.Module):
    """A chain of layers that returns what some of them make of the images; those behind the last one are dropped."""

    def __init__(self, layers: nn.Sequential, tapped: Sequence[str]) -> None:
        super().__init__()
        names = [name for name, _ in layers.named_children()]
        self.tapped = frozenset(tapped)
        self.layers = layers[: 1 + max(names.index(name) for name in tapped)]

    def forward(self, images: Tensor) -> Features:
        found, hidden = [], images
        for name, layer in self.layers.named_children():
            hidden = layer(hidden)
            if name in self.tapped:
                found.append(hidden)
        return tuple(found)


def with_weights(
    frozen: FrozenNetwork, weights: str | None, sha256: str | None, name_in_file: Callable[[str], str]
) -> FrozenNetwork:
    """Fill a network that was built without memory; `name_in_file` returns a tensor's name in the file by its own.

    `weights` is a file, or "random" for He's initialisation (of the convolutions, which are all that such networks
    consist of). Tensors of the file that the network lacks are left alone: only a part of it may be wanted. Where the
    default device is the meta device, no file is touched.
    """
    frozen.is_random = is_random(frozen.name, weights, sha256)
    if torch.get_default_device().type == "meta":
        return frozen
    network = frozen.network
    if frozen.is_random:
        network.to_empty(device="cpu")
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    else:
        held = read_weights(frozen.name, str(weights), sha256)
        state = {name: held.get(name_in_file(name)) for name in network.state_dict()}
        network.to_empty(device="cpu")
        copy_state(network, state, frozen.name, str(weights))
    network.to(memory_format=torch.channels_last)
    return frozen
