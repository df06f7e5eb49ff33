"""The networks of LPIPS (*The Unreasonable Effectiveness of Deep Features*, Zhang et al.), from its package."""

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from perceptual_mae.loss_networks.frozen import Features, FrozenNetwork, with_weights

_TRUNKS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet"}


def lpips_trunk(
    size: tuple[int, int],
    channels: int,
    *,
    net: Literal["alex", "vgg", "squeeze"] = "alex",
    weights: str | None = None,
    sha256: str | None = None,
    calibrated: bool = False,
) -> FrozenNetwork:
    """Features of an LPIPS trunk: all its ReLU stages, of images normalised by LPIPS's own constants.

    calibrated: normalise the features of each place to length 1 and weight their channels by the heads (v0.1, in the
    package) so that squared differences, summed over channels and layers and averaged over places, are LPIPS. weights:
    torchvision's file of alexnet, vgg16 or squeezenet1_1 (features.0.weight, ...), or "random". The smallest image
    sides are 32 (alex), 16 (vgg) and 24 (squeeze) pixels.
    """
    if net not in _TRUNKS:
        raise ValueError(f"lpips has no net {net!r}; choose from: {', '.join(_TRUNKS)}")
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", message="The parameter 'pretrained'")  # lpips speaks an older torchvision
        warnings.filterwarnings("ignore", message="Arguments other than a weight")
        trunk = getattr(lpips.pretrained_networks, _TRUNKS[net])(pretrained=False)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    with torch.device("cpu"):
        scaling = lpips.ScalingLayer()  # of images in [-1, 1]
        mean, std = (1 + scaling.shift.flatten()) / 2, scaling.scale.flatten() / 2
        gains = _head_gains(heads) if calibrated else []
    network = _Calibrated(trunk, gains) if calibrated else trunk
    frozen = FrozenNetwork("lpips", network, size, channels, mean.tolist(), std.tolist())
    return with_weights(frozen, weights, sha256, _torchvision_name)


class _Calibrated(nn.Module):
    """LPIPS's own space: unit length at each place, channels weighted by the square roots of the heads' weights."""

    def __init__(self, trunk: nn.Module, gains: list[Tensor]) -> None:
        super().__init__()
        self.trunk, self.gains = trunk, gains

    def forward(self, images: Tensor) -> Features:
        features: Features = self.trunk(images)
        # Where every channel is zero, a norm has a gradient (0) and the root of a sum of squares has none.
        lengths = [torch.linalg.vector_norm(feature, dim=1, keepdim=True) + 1e-10 for feature in features]
        layers = zip(features, lengths, self.gains, strict=True)
        return tuple(feature / length * gain.to(feature) for feature, length, gain in layers)


def _head_gains(path: Path) -> list[Tensor]:
    """Return the square roots of the heads' weights, one (1, C, 1, 1) a layer."""
    heads: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return [heads[f"lin{index}.model.1.weight"].sqrt() for index in range(len(heads))]


def _torchvision_name(name: str) -> str:
    """Return `features.0.weight` for `slice1.0.weight`: the slices keep torchvision's numbers."""
    return "features." + name.removeprefix("trunk.").partition(".")[2]
