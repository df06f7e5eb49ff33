"""The Inception network of 2015 that FID, KID and the Inception Score are defined by, from clean-fid's file."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.feature_networks.feature_network import FeatureNetwork
from perceptual_mae.evaluation.feature_networks.torchscript import load_script
from perceptual_mae.pretrained_weights.registry import FOREIGN_WEIGHTS, find, missing, sha256_of

NAME = "inception"
SIZE = (299, 299)


def published_inception(words: str = "", *, sha256: str | None = None, trust_code: bool = False) -> FeatureNetwork:
    """Return the network of the file `words`, or of the published one where `pmae weights fetch inception` put it.

    Images are resized to 299 pixels as clean-fid does. The 2048 features and the probabilities of its 1008 classes,
    whose logits have no bias as the Inception Score has it, come of one pass. A file other than the published one
    bears its own name in the scores, and runs with `trust_code` alone. Raises UserError where there is no file, or none
    that is right.
    """
    published = FOREIGN_WEIGHTS[NAME].sha256
    if words:
        path = Path(words).expanduser()
    else:
        file = find(NAME)
        if file is None:
            raise UserError(f"--features {NAME}: {missing(NAME)}")
        path, sha256 = file, sha256 or published
    network = Inception(load_script(path, sha256, trust_code=trust_code), path)
    digest = sha256_of(path)
    name = NAME if digest == published else path.name
    return FeatureNetwork(name, network, SIZE, {"kind": NAME, "file": path.name, "sha256": digest})


class Inception(nn.Module):
    """Features and logits without bias of pixels (B, 3, 299, 299) from 0 to 255."""

    def __init__(self, script: nn.Module, origin: Path) -> None:
        super().__init__()
        layers, weight = getattr(script, "layers", None), getattr(getattr(script, "output", None), "weight", None)
        if layers is None or weight is None:
            raise UserError(f"--features: {origin} is not the Inception network of clean-fid; leave out `inception:`")
        self.layers: nn.Module = layers
        self.weight: Tensor
        self.register_buffer("weight", weight)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        # The network's own call would resize first, without antialiasing; clean-fid goes past it as well.
        features = self.layers((pixels - 128) / 128).flatten(1)
        return features, F.linear(features, self.weight)
