"""Two published ways from the maps of a plain vision transformer to the pyramid that Mask R-CNN reads.

Shapes: B images, D width, p patch size; the pyramid has P channels at strides p/4, p/2, p, 2p (p2 to p5) and 4p (p6).
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from perceptual_mae.transfer.segmentation.network import FourTaps

LEVELS = ("p2", "p3", "p4", "p5")

Norm = Callable[[int], nn.Module]


class SimplePyramid(nn.Module):
    """The pyramid of the last map alone (Li et al. 2022, ViTDet).

    Forward: the tuple of one map (B, D, h, w) to {"p2": ..., "p5": ..., "p6": ...}, each (B, P, ., .).
    """

    def __init__(self, channels: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        width = channels[-1]
        up4: list[nn.Module] = [_double(width, width // 2), LayerNorm2d(width // 2), nn.GELU()]
        up4 += [_double(width // 2, width // 4)]
        up2: list[nn.Module] = [_double(width, width // 2)]
        self.p2 = nn.Sequential(*up4, *_project(width // 4, out_channels))
        self.p3 = nn.Sequential(*up2, *_project(width // 2, out_channels))
        self.p4 = nn.Sequential(*_project(width, out_channels))
        self.p5 = nn.Sequential(nn.MaxPool2d(2), *_project(width, out_channels))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        last = maps[-1]
        pyramid = {level: self.get_submodule(level)(last) for level in LEVELS}
        return pyramid | {"p6": F.max_pool2d(pyramid["p5"], kernel_size=1, stride=2)}


class TapsPyramid(nn.Module):
    """Four maps of the trunk, shallow to deep, scaled by 4, 2, 1 and 1/2, and a feature pyramid network on them.

    Of Li et al. 2021 ("Benchmarking detection transfer learning") in the form of MIMDet, with its group norm.
    has_norms: each map is normalised first, by a LayerNorm of its own. Maps of four strides are not scaled.
    Forward: four maps (B, D, h, w) to {"p2": ..., "p6": ...}, each (B, P, ., .).
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        out_channels: int = 256,
        *,
        norm: Norm = nn.BatchNorm2d,
        has_norms: bool = False,
    ) -> None:
        super().__init__()
        self.scales = FourTaps(channels, strides, norm="group", with_norms=has_norms)
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, extra_blocks=LastLevelMaxPool(), norm_layer=norm)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        pyramid = self.fpn(dict(zip(LEVELS, self.scales(maps), strict=True)))
        return {**{level: pyramid[level] for level in LEVELS}, "p6": pyramid["pool"]}


def _double(before: int, after: int) -> nn.Module:
    return nn.ConvTranspose2d(before, after, kernel_size=2, stride=2)


def _project(channels: int, out_channels: int) -> list[nn.Module]:
    """Return a 1 x 1 and a 3 x 3 convolution to the pyramid's channels, each with a LayerNorm instead of a bias."""
    return [
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    ]
