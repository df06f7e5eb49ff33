"""Where the weights of metric networks lie: in torch's folder of downloads, under their publishers' names."""

import os
from pathlib import Path

from perceptual_mae.evaluation.metrics.contract import UnavailableError

FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg16": "vgg16-397923af.pth",
    "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
}
"""Torchvision's files; the digits are the first of their SHA-256."""


def find_weights(name: str) -> Path:
    """Return the file of a network's weights; UnavailableError says which command fetches it."""
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    path = Path(torch_home).expanduser() / "hub" / "checkpoints" / FILES[name]
    if not path.is_file():
        raise UnavailableError(f"the weights of {name} are not at hand; fetch them: pmae weights fetch {name}")
    return path
