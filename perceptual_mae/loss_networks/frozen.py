"""Frozen networks that give features of images."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceptual_mae.pretrained_weights.loading import copy_state, is_random, read_weights

Features = tuple[Tensor, ...]
"""Maps (B, C_j, H_j, W_j) of a network's layers, shallow to deep."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation by which networks trained on ImageNet expect their images to be normalised."""


class FrozenNetwork(nn.Module):
    """Features of images (B, C, H, W) in [0, 1], which are normalised here: (image - mean) / std.

    `network` takes RGB images and returns features. With `image_size` it sees them enlarged (bilinearly) until their
    shorter side has that many pixels: networks of large images see little of small ones (Projected GANs, Sauer et al.).
    Its weights get no gradient and its norm statistics are constant
    even after `train()`; the images' gradient passes. It computes in float32 (or the wider type of its weights) with
    autocast off. Greyscale images are repeated to three channels. Raises ValueError where the images have other
    channels or are too small or would be reduced, and where its features are no maps.
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
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"{name} takes RGB or greyscale images, not {channels} channels")
        self.name, self.is_random = name, False
        self.size = _enlarged(name, size, image_size)
        for module in network.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]  # it would overwrite features already returned
        self.network = network.requires_grad_(False).eval()
        for statistic, values in (("mean", mean), ("std", std)):
            shape = (1, len(values), 1, 1)
            self.register_buffer(statistic, torch.tensor(values, dtype=torch.get_default_dtype()).view(shape))
        self._check_features(self.size)

    def forward(self, images: Tensor) -> Features:
        """Return the features of images (B, C, H, W) in [0, 1]."""
        device = images.device.type if images.device.type != "meta" else "cpu"  # autocast does not know meta tensors
        with torch.autocast(device, enabled=False):
            normalised = (images.to(self.mean.dtype) - self.mean) / self.std  # (B, 3, H, W), from one channel too
            if normalised.shape[-2:] != self.size:
                normalised = F.interpolate(normalised, self.size, mode="bilinear", align_corners=False)
            features: Features = self.network(normalised)
            return features

    def train(self, mode: bool = True) -> "FrozenNetwork":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def _check_features(self, size: tuple[int, int]) -> None:
        """Check the features of one black image; on the meta device this costs nothing."""
        device = next(self.network.parameters()).device
        try:
            features = self.network(torch.zeros(1, 3, *size, device=device, dtype=self.mean.dtype))
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(f"{self.name} cannot take images of {size[0]}x{size[1]} pixels ({reason})") from error
        flat = [tuple(feature.shape) for feature in features if feature.ndim != 4]
        if flat:
            raise ValueError(f"{self.name}: features must be maps (B, C, H, W), but a layer returns {flat[0]}")


def _enlarged(name: str, size: tuple[int, int], image_size: int | None) -> tuple[int, int]:
    """Return height and width of images of `size` whose shorter side is enlarged to `image_size`; None: as they are."""
    if image_size is None:
        return size
    shorter = min(size)
    if image_size < shorter:
        raise ValueError(f"{name} enlarges images: image_size {image_size} is below their {shorter} pixels")
    return (round(size[0] * image_size / shorter), round(size[1] * image_size / shorter))


class Taps(nn.Module):
    """A chain of layers that returns the outputs of those `tapped`; layers after the last of them are dropped."""

    def __init__(self, layers: nn.Sequential, tapped: Sequence[str]) -> None:
        super().__init__()
        names = [name for name, _ in layers.named_children()]
        self.tapped = frozenset(tapped)
        self.layers = layers[: 1 + max(names.index(name) for name in tapped)]

    def forward(self, images: Tensor) -> Features:
        """Return the tapped outputs (B, C_j, H_j, W_j) of images (B, 3, H, W)."""
        features, hidden = [], images
        for name, layer in self.layers.named_children():
            hidden = layer(hidden)
            if name in self.tapped:
                features.append(hidden)
        return tuple(features)


def with_weights(
    frozen: FrozenNetwork, weights: str | None, sha256: str | None, name_in_file: Callable[[str], str]
) -> FrozenNetwork:
    """Fill a network built on the meta device; `name_in_file` maps the name of a tensor to that in the file.

    `weights` is a file, or "random" for He's initialisation (of the convolutions: such networks have no other
    weights). Tensors of the file that the network lacks are ignored: the network may be a part of it. Where the default
    device is the meta device, no file is read.
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
        tensors = read_weights(frozen.name, str(weights), sha256)
        state = {name: tensors.get(name_in_file(name)) for name in network.state_dict()}
        network.to_empty(device="cpu")
        copy_state(network, state, frozen.name, str(weights))
    network.to(memory_format=torch.channels_last)
    return frozen
