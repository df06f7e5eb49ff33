"""A feature network of one's own from a file that says by itself how it computes: TorchScript, or torch.export's."""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from perceptual_mae.config.own_kinds import refusal
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.feature_networks.feature_network import FeatureNetwork, Normalised
from perceptual_mae.images import Size
from perceptual_mae.pretrained_weights.registry import FOREIGN_WEIGHTS, check_sha256, sha256_of

EXPORTED = ".pt2"
Color = tuple[float, float, float]


def torchscript(
    words: str,
    *,
    sha256: str | None = None,
    size: Size | None = None,
    mean: Color = (0.0, 0.0, 0.0),
    std: Color = (1.0, 1.0, 1.0),
    trust_code: bool = False,
) -> FeatureNetwork:
    """Return the network of a TorchScript file or an exported program (.pt2), named as the file.

    It takes RGB images (B, 3, H, W) in [0, 1], or (x - mean) / std of them, and returns features (B, D), maps or
    tokens, or a pair of these and logits (B, K), without which there is no Inception Score. See `load_script`.
    """
    path = Path(words).expanduser()
    module = Normalised(load_script(path, sha256, trust_code=trust_code), mean, std)
    metadata = {"kind": "torchscript", "file": path.name, "sha256": sha256_of(path)}
    return FeatureNetwork(path.name, module, size, metadata | {"mean": list(mean), "std": list(std)})


def load_script(path: Path, sha256: str | None = None, *, trust_code: bool = False) -> nn.Module:
    """Return the module of a TorchScript file or a .pt2, frozen, on the CPU.

    Such a file is a program, which may read and write files, and a .pt2 is unpickled: without `trust_code` it is opened
    only where it is a published one, by its SHA-256. Raises UserError for others, and where the file is neither.
    """
    if not path.is_file():
        raise UserError(f"--features: {path} does not exist; give a TorchScript file or an exported program (.pt2)")
    if sha256 is not None:
        check_sha256(path, sha256)
    if not trust_code and sha256_of(path) not in {known.sha256 for known in FOREIGN_WEIGHTS.values()}:
        raise UserError(
            refusal(f"--features {path}", _what_it_runs(path)) if _is_program(path) else _NEITHER.format(path)
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == EXPORTED:
                return torch.export.load(path).module().requires_grad_(False)  # it was exported in evaluation mode
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # what is no network may fail in any way
        raise UserError(_NEITHER.format(path)) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


_NEITHER = (
    f"--features: {{}} is neither a TorchScript file nor an exported program ({EXPORTED}); a state dict "
    "needs its network: torchvision:NAME:FILE, timm:NAME:FILE or cifar_resnet:FILE"
)


def _is_program(path: Path) -> bool:
    """Tell whether a file seems to hold code, from the names of its members; nothing of it is read."""
    if path.suffix == EXPORTED:
        return True
    try:
        with zipfile.ZipFile(path) as members:
            return any("/code/" in name for name in members.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _what_it_runs(path: Path) -> str:
    if path.suffix == EXPORTED:
        return "an exported program runs what is pickled in it when it is opened"
    return "TorchScript is a program that would be run, and may write files"
