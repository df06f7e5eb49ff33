"""A feature network of one's own from a file that says by itself how it computes: TorchScript, or torch.export's."""

import warnings
from pathlib import Path

import torch
from torch import nn

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.feature_networks.feature_network import FeatureNetwork, Normalised
from perceptual_mae.images import Size
from perceptual_mae.pretrained_weights.registry import check_sha256, sha256_of

EXPORTED = ".pt2"
Color = tuple[float, float, float]


def torchscript(
    words: str,
    *,
    sha256: str | None = None,
    size: Size | None = None,
    mean: Color = (0.0, 0.0, 0.0),
    std: Color = (1.0, 1.0, 1.0),
) -> FeatureNetwork:
    """Return the network of a TorchScript file or an exported program (.pt2), named as the file.

    It takes RGB images (B, 3, H, W) in [0, 1], or (x - mean) / std of them, and returns features (B, D), maps or
    tokens, or a pair of these and logits (B, K), without which there is no Inception Score.
    """
    path = Path(words).expanduser()
    module = Normalised(load_script(path, sha256), mean, std)
    metadata = {"kind": "torchscript", "file": path.name, "sha256": sha256_of(path)}
    return FeatureNetwork(path.name, module, size, metadata | {"mean": list(mean), "std": list(std)})


def load_script(path: Path, sha256: str | None = None) -> nn.Module:
    """Return the module of a TorchScript file or a .pt2, frozen, on the CPU. Raises UserError where it is neither."""
    if not path.is_file():
        raise UserError(f"--features: {path} does not exist; give a TorchScript file or an exported program (.pt2)")
    if sha256 is not None:
        check_sha256(path, sha256)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == EXPORTED:
                return torch.export.load(path).module().requires_grad_(False)  # it was exported in evaluation mode
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # what is no network may fail in any way
        raise UserError(
            f"--features: {path} is neither a TorchScript file nor an exported program ({EXPORTED}); a state dict "
            "needs its network: torchvision:NAME:FILE, timm:NAME:FILE or cifar_resnet:FILE"
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()
