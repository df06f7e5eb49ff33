"""Initial weights of the encoder, and of the decoder where asked for, from what `generator.init_from` names.

A run that goes on from a checkpoint of its own does not need the other one any more.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.errors import UserError
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.interop.pretrained import Pretrained, open_pretrained
from perceptual_mae.interop.reading import holds_weights
from perceptual_mae.interop.stated import Settings
from perceptual_mae.pretrained_weights.registry import sha256_of
from perceptual_mae.run import checkpoint
from perceptual_mae.run.run import Run

log = logging.getLogger(__name__)

KEY, DECODER_KEY = "generator.init_from", "generator.init_parts"
ENCODER = "encoder."
"""What names of the encoder's tensors begin with in a generator."""
OF_THE_DATA = ("mean", "std")
"""What of an encoder's state is the data's and not learnt: a run keeps its own."""


@dataclass(frozen=True)
class Origin:
    """The file of an encoder; of a run's the step, and whether its weights are averaged; of others the file's form."""

    file: Path
    step: int | None = None
    ema: bool = False
    form: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return what the new run stands on, for environment.json."""
        stated = {"path": str(self.file), "step": self.step, "ema": self.ema, "sha256": sha256_of(self.file)}
        return stated if self.form is None else stated | {"form": self.form}

    def __str__(self) -> str:
        of_run = f" (step {self.step}{', averaged weights' if self.ema else ''})" if self.step is not None else ""
        return f"the encoder starts from {self.file}{of_run}{f' ({self.form})' if self.form else ''}"


@dataclass(frozen=True)
class WarmStart:
    """An encoder's tensors by its own names, where they are from, and the rest of its generator where that is kept."""

    tensors: dict[str, Tensor]
    origin: Origin
    decoder: dict[str, Tensor] | None = None
    settings: Settings = field(default_factory=Settings)

    def check(self, generator: MaskedAutoencoder) -> None:
        """Raise UserError unless every tensor that is to be taken over is here, of its shape, and no other."""
        encoder = generator.encoder
        own = {name: getattr(encoder, name) for name in OF_THE_DATA}
        if mismatch := checkpoint.state_dict_mismatch(encoder, {**self.tensors, **own}):
            raise UserError(
                f"{KEY}: the encoder of {self.origin.file} does not fit: tensors {mismatch}; give generator.* and "
                "data.image_size the values it was trained with, or set another one or null"
            )
        self._check_settings(generator)
        if self.decoder is None:
            return
        of_encoder = {name: value for name, value in generator.state_dict().items() if name.startswith(ENCODER)}
        if mismatch := checkpoint.state_dict_mismatch(generator, {**self.decoder, **of_encoder}):
            raise UserError(
                f"{DECODER_KEY}: the decoder of {self.origin.file} does not fit: tensors {mismatch}; give generator.* "
                "the values it was trained with, or set it to encoder"
            )

    def _check_settings(self, generator: MaskedAutoencoder) -> None:
        """Refuse what shapes do not show: numbers of heads and the like that are not those that the file states."""
        own: dict[str, Any] = {
            "heads": generator.encoder.num_heads,
            "layer_norm_eps": generator.layer_norm_eps,
        }
        if self.decoder is not None:
            own |= {"decoder_heads": generator.decoder.num_heads, "norm_pix": generator.norm_pix}
        for name, value in own.items():
            said = getattr(self.settings, name)
            if said is not None and said != value:
                raise UserError(f"{KEY}: {self.origin.file} says {name} {said}; set generator.{name}={_yaml(said)}")

    def load(self, generator: MaskedAutoencoder) -> None:
        """Take over all that was learnt; mean and deviation of the images stay those of this run's data."""
        self.check(generator)
        encoder = generator.encoder
        if self.decoder is not None:
            generator.load_state_dict({**generator.state_dict(), **self.decoder})
        encoder.load_state_dict({**encoder.state_dict(), **self._learnt()})
        for name in OF_THE_DATA:
            if name in self.tensors and not torch.equal(self.tensors[name].cpu(), getattr(encoder, name).cpu()):
                log.warning("%s was trained under another data.%s than this run has", self.origin.file, name)

    def _learnt(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.tensors.items() if name not in OF_THE_DATA}


def find_start(config: RunConfig, checkpoints: Path) -> WarmStart | None:
    """Return what a run with its checkpoints in that folder begins with; None where it resumes, or starts afresh.

    Raises UserError where `generator.init_from` names no encoder.
    """
    if config.generator.init_from is None or checkpoint.checkpoints(checkpoints):
        return None
    return open_start(Path(config.generator.init_from), decoder=config.generator.starts_decoder)


def check_start(config: RunConfig, checkpoints: Path) -> WarmStart | None:
    """Find a run's start and check that it fits the generator that the run will have, without memory for that."""
    start = find_start(config, checkpoints)
    if start is not None:
        with torch.device("meta"):
            generator = build.build_generator(config.generator, config.data.image, config.training.seed)
        start.check(generator)
    return start


def open_start(path: Path, *, decoder: bool = False) -> WarmStart:
    """Open a run folder, a checkpoint in it (averaged weights where there are any), or weights of others.

    Weights of others are a file or a folder that `interop` reads, exports of ours included. Raises UserError, also
    where they have no `decoder` to be taken over.
    """
    try:
        return (
            _start_of_weights(open_pretrained(path), decoder) if holds_weights(path) else _start_of_run(path, decoder)
        )
    except UserError as mistake:
        raise UserError(f"{KEY}: {mistake}") from mistake


def _start_of_run(path: Path, decoder: bool) -> WarmStart:
    run = Run(path)
    name = "generator_ema" if run.has_ema else "generator"
    state = checkpoint.load_tensors(run.checkpoint, name)
    origin = Origin(run.checkpoint / f"{name}.safetensors", run.step, run.has_ema)
    encoder, rest = _parts(state)
    return WarmStart(encoder, origin, rest if decoder else None)


def _start_of_weights(pretrained: Pretrained, decoder: bool) -> WarmStart:
    if decoder and not pretrained.has_decoder:
        raise UserError(f"{pretrained.file} holds an encoder alone; set {DECODER_KEY}=encoder")
    for note in pretrained.notes:
        log.warning("%s: %s", pretrained.file, note)
    encoder, rest = _parts(pretrained.tensors)
    settings = pretrained.settings
    for name, values in (("mean", settings.mean), ("std", settings.std)):
        if values is not None:
            encoder[name] = torch.tensor(values).view(-1, 1, 1)
    return WarmStart(encoder, Origin(pretrained.file, form=pretrained.form), rest if decoder else None, settings)


def _parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the encoder's tensors by its own names, and the rest of its generator."""
    encoder = {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}
    return encoder, {name: value for name, value in state.items() if not name.startswith(ENCODER)}


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
