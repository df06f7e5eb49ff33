"""The networks of LPIPS (*The Unreasonable Effectiveness of Deep Features*, Zhang et al.) as loss networks."""

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
    image_size: int | None = None,
) -> FrozenNetwork:
    """Trunk of LPIPS: features of all its ReLU stages, of images normalised by LPIPS's own constants.

    Takes images (B, C, H, W) in [0, 1]; the smallest sides are 32 (alex), 16 (vgg) and 24 (squeeze) pixels. Squared
    differences of calibrated features, summed over channels and layers and averaged over positions, are LPIPS.

    Options:
        net: the trunk [LPIPS]
        weights: torchvision's file of alexnet, vgg16 or squeezenet1_1, a name of `pmae weights list`, or "random"; must
            be given [none]
        sha256: SHA-256 that the file must have, or its first 8 digits or more; null checks none [none]
        calibrated: normalise features to length 1 at each position and weight channels by LPIPS's heads (v0.1) [ours]
        image_size: pixels of the shorter side to which images are enlarged for it; null: as they are [ours]

    Raises ValueError for an unknown net.
    """
    if net not in _TRUNKS:
        raise ValueError(f"lpips has no net {net!r}; choose from: {', '.join(_TRUNKS)}")
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings(
            "ignore", message="The parameter 'pretrained'"
        )  # lpips uses an older interface of torchvision
        warnings.filterwarnings("ignore", message="Arguments other than a weight")
        trunk = getattr(lpips.pretrained_networks, _TRUNKS[net])(pretrained=False)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    with torch.device("cpu"):
        scaling = lpips.ScalingLayer()  # of images in [-1, 1]
        mean, std = (1 + scaling.shift.flatten()) / 2, scaling.scale.flatten() / 2
        gains = _head_gains(heads) if calibrated else []
    network = _Calibrated(trunk, gains) if calibrated else trunk
    frozen = FrozenNetwork("lpips", network, size, channels, mean.tolist(), std.tolist(), image_size)
    return with_weights(frozen, weights, sha256, _torchvision_name)


class _Calibrated(nn.Module):
    """LPIPS's own space: unit length at each position, channels weighted by the square roots of the heads' weights."""

    def __init__(self, trunk: nn.Module, gains: list[Tensor]) -> None:
        super().__init__()
        self.trunk, self.gains = trunk, gains

    def forward(self, images: Tensor) -> Features:
        """Return maps (B, C_j, H_j, W_j) of normalised images (B, 3, H, W)."""
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
