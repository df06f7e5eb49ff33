"""The small residual networks for CIFAR (He et al., *Deep Residual Learning*, section 4.2), from a state dict.

Names: conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear; shortcuts have no parameters (option A).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.feature_networks.feature_network import FeatureNetwork, Normalised
from perceptual_mae.evaluation.feature_networks.library import FILE_HINT, Tapped, frozen
from perceptual_mae.evaluation.feature_networks.torchscript import Color
from perceptual_mae.images import Size
from perceptual_mae.loss_networks.frozen import IMAGENET
from perceptual_mae.pretrained_weights.loading import copy_state, read_weights
from perceptual_mae.pretrained_weights.registry import sha256_of


def cifar_resnet(
    words: str,
    *,
    sha256: str | None = None,
    size: Size | None = None,
    mean: Color = IMAGENET[0],
    std: Color = IMAGENET[1],
) -> FeatureNetwork:
    """Return the network of a file; depth, widths and number of classes are read off its tensors.

    Features are what goes into its linear layer: the means of 64 maps, where the first layer has 16.
    """
    path = Path(words).expanduser()
    state = read_weights("cifar_resnet", words, sha256, hint=FILE_HINT)
    try:
        width, classes = state["conv1.weight"].shape[0], state["linear.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"--features: {path} holds no CIFAR ResNet (no {error.args[0]})") from error
    blocks = sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in state)
    network = CifarResNet(blocks, width, classes)
    copy_state(network, dict(state), "cifar_resnet", words)
    metadata = {"kind": "cifar_resnet", "depth": 6 * blocks + 2, "file": path.name, "sha256": sha256_of(path)}
    module = Normalised(Tapped(frozen(network)), mean, std)
    return FeatureNetwork(path.name, module, size, metadata | {"mean": list(mean), "std": list(std)})


class CifarResNet(nn.Module):
    """Logits (B, K) of normalised images (B, 3, H, W): 6 n + 2 layers for n blocks a stage."""

    def __init__(self, blocks: int, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage in (1, 2, 3):
            before, after = width * 2 ** max(0, stage - 2), width * 2 ** (stage - 1)
            layers = [Block(before, after)] + [Block(after, after) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)))
        for stage in (1, 2, 3):
            hidden = self.get_submodule(f"layer{stage}")(hidden)
        logits: Tensor = self.linear(hidden.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the width doubles, every second pixel and channels of zeros around."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.added = stride, (after - before) // 2

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        shortcut = images[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added, self.added))
        return torch.relu(hidden + shortcut)
