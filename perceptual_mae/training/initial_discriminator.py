"""Initial weights of the discriminator, from the file that `discriminator.init_from` names.

A run that goes on from a checkpoint of its own does not need the file any more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from discriminators.nvidia import from_nvidia, is_nvidias, options_of
from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.errors import UserError
from perceptual_mae.interop.reading import read_raw
from perceptual_mae.pretrained_weights.registry import sha256_of
from perceptual_mae.run import checkpoint
from perceptual_mae.run.folder import CONFIG

KEY = "discriminator.init_from"


@dataclass(frozen=True)
class DiscriminatorStart:
    """A discriminator's tensors under our names, their file, whose names it has, and what would fit them, in words."""

    tensors: dict[str, Tensor]
    file: Path
    form: str
    fits: str

    def check(self, discriminator: nn.Module) -> None:
        """Raise UserError unless every tensor of the discriminator is here, of its shape, and no other."""
        if mismatch := checkpoint.state_dict_mismatch(discriminator, self.tensors):
            raise UserError(
                f"{KEY}: the discriminator of {self.file} ({self.form}) does not fit: tensors {mismatch}; "
                f"set {self.fits}"
            )

    def load(self, discriminator: nn.Module) -> None:
        """Take over all that was learnt."""
        self.check(discriminator)
        discriminator.load_state_dict(self.tensors)

    def metadata(self) -> dict[str, Any]:
        """Return what the run's discriminator starts with, for environment.json."""
        return {"path": str(self.file), "form": self.form, "sha256": sha256_of(self.file)}

    def __str__(self) -> str:
        return f"the discriminator starts from {self.file} ({self.form})"


def find_discriminator_start(config: RunConfig, checkpoints: Path) -> DiscriminatorStart | None:
    """Return what a run with its checkpoints in that folder begins with; None where it resumes, or starts afresh.

    Raises UserError where `discriminator.init_from` names no discriminator.
    """
    section = config.discriminator
    if section is None or section.init_from is None or checkpoint.checkpoints(checkpoints):
        return None
    return open_discriminator(Path(section.init_from))


def check_discriminator_start(config: RunConfig, checkpoints: Path) -> DiscriminatorStart | None:
    """Find a discriminator's start and check that it fits the one that the run will have, without memory for that."""
    start = find_discriminator_start(config, checkpoints)
    if start is not None:
        image, seed = config.data.image, config.training.seed
        with torch.device("meta"):
            encoder = build.build_generator(config.generator, image, seed).encoder
            discriminator = build.build_discriminator(config.discriminator, image, seed, encoder)
        assert discriminator is not None
        start.check(discriminator)
    return start


def open_discriminator(path: Path) -> DiscriminatorStart:
    """Open a file with the state dict of a discriminator, NVIDIA's or ours; nothing in it is run. Raises UserError."""
    try:
        _refuse_run(path)
        raw = read_raw(path)
        if not is_nvidias(raw.tensors):
            fits = "discriminator.* and data.image_size to the values it was trained with"
            return DiscriminatorStart(raw.tensors, raw.file, "perceptual-mae", fits)
        side, options = options_of(raw.tensors)
        words = [f"data.image_size={side}", "discriminator.kind=stylegan2"]
        words += [f"discriminator.{name}={value}" for name, value in options.items()]
        return DiscriminatorStart(from_nvidia(raw.tensors), raw.file, "NVIDIA's StyleGAN2", " ".join(words))
    except ValueError as mistake:
        raise UserError(f"{KEY}: {mistake}" + ("" if isinstance(mistake, UserError) else f" ({path})")) from mistake


def _refuse_run(path: Path) -> None:
    """Raise UserError for a run's folder or a checkpoint, which hold more than one network."""
    is_run = (path / CONFIG).is_file()
    if not is_run and not (path.is_dir() and checkpoint.is_name(path.name)):
        return
    saved = checkpoint.checkpoints(path / "checkpoints") if is_run else [path]
    files = [file for file in (each / "discriminator.safetensors" for each in saved) if file.is_file()]
    remedy = (
        f"give the file of its discriminator, {files[-1]}" if files else "it holds no discriminator; name another one"
    )
    raise UserError(f"{path}: is a run's {'folder' if is_run else 'checkpoint'}; {remedy}")
