"""Files of weights that others trained: their names, uses and places.

Nothing here imports torch. A file is looked for in the folder of weights, then where torch keeps its downloads.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from perceptual_mae.files import user_cache

ENVIRONMENT = "PMAE_WEIGHTS"


@dataclass(frozen=True)
class ForeignWeights:
    """A file by its publisher's name.

    sha256: what it must have; None where the file is not published as it is read here. publisher: whose package knows
    its address ("torchvision:" and the name of a weight, or "clean-fid"); None where it is made by hand, as `recipe`
    says.
    """

    file: str
    sha256: str | None
    mebibytes: int
    unlocks: str
    publisher: str | None = None
    recipe: str = ""


FOREIGN_WEIGHTS: dict[str, ForeignWeights] = {
    "inception": ForeignWeights(
        "inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        91,
        "scores fid and kid (2048 features), is (1008 classes)",
        "clean-fid",
    ),
    "alexnet": ForeignWeights(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        233,
        "score lpips_alex; loss network lpips with net: alex",
        "torchvision:AlexNet_Weights.IMAGENET1K_V1",
    ),
    "vgg16": ForeignWeights(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        528,
        "score lpips_vgg; loss networks vgg16 (method vgg_p), lpips with net: vgg",
        "torchvision:VGG16_Weights.IMAGENET1K_V1",
    ),
    "squeezenet1_1": ForeignWeights(
        "squeezenet1_1-b8a52dc0.pth",
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        5,
        "score lpips_squeeze; loss networks lpips with net: squeeze, named (method teacher_p)",
        "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1",
    ),
    "dvae": ForeignWeights(
        "dvae_encoder.pt",
        None,
        205,
        "loss network dvae (method dvae_p)",
        recipe="is published as a pickled network, encoder.pkl of DALL-E; where the package dall_e is installed, make "
        'it by torch.save(torch.load("encoder.pkl", weights_only=False).state_dict(), "dvae_encoder.pt")',
    ),
}
"""The hashes are those of the published files; torchvision's names begin with the first digits of theirs."""


def default_folder() -> Path:
    """Return the folder of weights: $PMAE_WEIGHTS, else one under the user's cache."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given).expanduser()
    return user_cache() / "perceptual-mae" / "weights"


def torch_downloads() -> Path:
    """Return the folder that torch.hub and torchvision download to."""
    given = os.environ.get("TORCH_HOME")
    return (Path(given).expanduser() if given else user_cache() / "torch") / "hub" / "checkpoints"


def find(name: str, folder: Path | None = None) -> Path | None:
    """Return the file of FOREIGN_WEIGHTS[name], from `folder` (default: the folder of weights) or torch's; or None."""
    file = FOREIGN_WEIGHTS[name].file
    places = (folder or default_folder(), torch_downloads())
    return next((place / file for place in places if (place / file).is_file()), None)


def locate(weights: str) -> tuple[Path, str | None]:
    """Return the file that `weights` of a configuration means, and the SHA-256 it must have if that is known.

    A path is taken as it is. Where it leads to no file, a name of FOREIGN_WEIGHTS, or of one of their files, means the
    file of that name, wherever it is.
    """
    path = Path(weights).expanduser()
    if not path.exists():
        for name, entry in FOREIGN_WEIGHTS.items():
            if weights in (name, entry.file):
                located = find(name)
                return (located, entry.sha256) if located else (path, None)
    return path, None


def missing(name: str) -> str:
    """Say that the weights of a name are not there, and which command fetches them."""
    return f"the weights of {name} are not installed; fetch them: pmae weights fetch {name}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> str:
    """Return the SHA-256 of a file if it begins with `expected`, 8 to 64 hexadecimal digits; else raise ValueError."""
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", expected):
        raise ValueError(f"sha256 must be 8 to 64 hexadecimal digits, not {expected!r}")
    digest = sha256_of(path)
    if not digest.startswith(expected.lower()):
        raise ValueError(f"{path} has SHA-256 {digest}, not {expected}; it is another file, or a damaged one")
    return digest
