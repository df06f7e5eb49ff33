"""A small TorchScript network with the doors of inception-2015-12-05.pt: `layers`, `output` and their call."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, CLASSES = 12, 7


class StandIn(nn.Module):
    """Features (B, dim) and probabilities (B, 7) of pixels from 0 to 255 of any size."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, dim, 9, stride=16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.output = nn.Linear(dim, CLASSES)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        resized = F.interpolate(img.to(torch.float32), size=[299, 299], mode="bilinear", align_corners=False)
        features = self.layers((resized - 128) / 128).flatten(1)
        if return_features:
            return features
        if no_output_bias:
            return F.softmax(F.linear(features, self.output.weight), dim=1)
        return F.softmax(self.output(features), dim=1)


def save_stand_in(path: str, dim: int = DIM) -> None:
    """Write the network, with weights of a fixed seed whose classes differ from image to image."""
    torch.manual_seed(0)
    network = StandIn(dim).eval()
    with torch.no_grad():
        network.output.weight.mul_(40)
    torch.jit.script(network).save(path)
