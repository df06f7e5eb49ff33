"""An export under way, and how well what was written matches the run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.interop.key_maps import encoder_of

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Export:
    """What is written where: a generator in float32, its options, and the share of patches hidden in training."""

    generator: MaskedAutoencoder
    folder: Path
    with_decoder: bool
    mask_ratio: float
    options: Mapping[str, Any]

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors to write, by our names."""
        state = self.generator.state_dict()
        return state if self.with_decoder else encoder_of(state)

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, as short as they were given."""
        encoder = self.generator.encoder
        mean, std = ([round(value, 7) for value in each.flatten().tolist()] for each in (encoder.mean, encoder.std))
        return mean, std


@dataclass(frozen=True)
class Proof:
    """The greatest difference of an export's outputs from ours, next to the largest of ours."""

    what: str
    precision: str
    images: int
    difference: float
    largest: float
    seconds: float = 0.0

    def timed(self, seconds: float) -> "Proof":
        return replace(self, seconds=seconds)

    def __str__(self) -> str:
        return (
            f"{self.what}, {self.images} images, {self.precision}: greatest difference {self.difference:.2g} "
            f"(largest output {self.largest:.3g})"
        )


def difference(what: str, theirs: Tensor, ours: Tensor) -> Proof:
    """Return the proof of outputs (B, ...) of the same images."""
    precision = str(theirs.dtype).removeprefix("torch.")
    return Proof(what, precision, len(ours), float((theirs - ours).abs().max()), float(ours.abs().max()))


def save_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write model.safetensors; the mark of its format is for older readers."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
