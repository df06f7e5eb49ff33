"""Networks through which sets of images are compared, one kind a file; Inception is the one that papers use.

A kind is built as `kind(words, *, options)` from what follows its name in `--features KIND:WORDS,option=value`, and
returns a `FeatureNetwork`. Weights always come from a file of the user's; there are no random ones.
"""

from collections.abc import Callable

from perceptual_mae.evaluation.feature_networks.cifar_resnet import cifar_resnet
from perceptual_mae.evaluation.feature_networks.feature_network import ExtractedFeatures, FeatureNetwork
from perceptual_mae.evaluation.feature_networks.inception import published_inception
from perceptual_mae.evaluation.feature_networks.library import timm, torchvision
from perceptual_mae.evaluation.feature_networks.run_encoder import run_encoder
from perceptual_mae.evaluation.feature_networks.torchscript import torchscript

FEATURE_NETWORKS: dict[str, Callable[..., FeatureNetwork]] = {
    "inception": published_inception,
    "torchscript": torchscript,
    "torchvision": torchvision,
    "timm": timm,
    "cifar_resnet": cifar_resnet,
    "run": run_encoder,
}

__all__ = ["FEATURE_NETWORKS", "ExtractedFeatures", "FeatureNetwork"]
