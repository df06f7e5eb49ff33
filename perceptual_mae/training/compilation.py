"""How a device computes the steps of training: compiled networks, CUDA graphs, TensorFloat-32, cuDNN's trials.

All of it is on between the beginning and the end of a step alone. Scores are computed by networks as they are, in
float32 where no autocast is.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._triton import has_triton

from perceptual_mae.config.training_sections import Compiled
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.open_run import allow_tf32
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.loss_networks import FrozenNetwork, LossNetworks
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.adversary import Adversary
from perceptual_mae.training.metrics import Scalars

if TYPE_CHECKING:
    from perceptual_mae.data.batch import Batch
    from perceptual_mae.training.trainer import Trainer

PARTS = {"off": (), "discriminator": ("discriminator",), "all": ("discriminator", "generator")}
"""What is compiled, by the value of `training.compile`; frozen loss networks count with the generator."""
_EAGER = ContextVar("networks run as they are", default=False)


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run networks as they are, compiled or not: for second derivatives, and for counting."""
    token = _EAGER.set(True)
    try:
        yield
    finally:
        _EAGER.reset(token)


class StepDevice:
    """Sets the device up at the beginning of a step, and back at its end.

    A compiled network keeps its class, its weights and their names; only a function that its forward pass calls is
    another, the same to rounding errors. It runs as it is outside of steps, for the path length, and as discriminator
    in steps in which R1 or R2 is due: compiled functions have no second derivative.

    A compiled backward pass computes all gradients, whatever is asked for: where the lean step takes the gradient of
    reconstructions alone, that of the discriminator's weights is computed with it and dropped. Raises UserError where
    the device cannot do what is wanted.
    """

    def __init__(
        self,
        device: torch.device,
        compiled: Compiled = "off",
        *,
        cuda_graphs: bool = False,
        tf32: bool = False,
        cudnn_benchmark: bool = False,
    ) -> None:
        on_gpu = device.type == "cuda"
        if cuda_graphs and not on_gpu:
            raise UserError(
                f"training.cuda_graphs: needs a CUDA GPU, but this is a run on {device.type}; set it to false"
            )
        if compiled != "off":
            _check_compiler(device)
        self.parts, self.cuda_graphs = PARTS[compiled], cuda_graphs
        self.tf32, self.cudnn_benchmark = tf32 and on_gpu, cudnn_benchmark and on_gpu
        self._compiled_now: tuple[str, ...] = ()

    def set_up_steps(self, trainer: "Trainer") -> None:
        """Have a trainer's steps begin and end here, where there is anything to set up."""
        if not (self.parts or self.tf32 or self.cudnn_benchmark):
            return
        own = trainer.step

        @wraps(own)
        def step(batches: "Sequence[Batch]", progress: TrainingProgress) -> Scalars:
            self.begin_step(trainer.adversary, progress.step)
            try:
                return own(batches, progress)
            finally:
                self.end_step()

        trainer.step = step  # type: ignore[method-assign]

    def begin_step(self, adversary: Adversary | None, step: int) -> None:
        """Compute as training does from here on."""
        is_twice = adversary is not None and bool(adversary.due(step))
        self._compiled_now = tuple(part for part in self.parts if part != "discriminator" or not is_twice)
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # what the graphs of the last step wrote may be overwritten
        if self.tf32:
            allow_tf32(True)
        if self.cudnn_benchmark:
            torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()

    def end_step(self) -> None:
        """Compute as scores are computed from here on."""
        self._compiled_now = ()
        if self.tf32:
            allow_tf32(False)
        if self.cudnn_benchmark:
            torch.backends.cudnn.benchmark = False

    def compile_discriminator(self, discriminator: nn.Module) -> None:
        """Compile a discriminator, before Accelerate puts autocast around its forward pass."""
        self._compile("discriminator", discriminator, "forward")

    def compile_generator(self, generator: MaskedAutoencoder, networks: LossNetworks) -> None:
        """Compile frozen loss networks, and a generator in three pieces: between them gradients are measured."""
        self._compile("generator", generator, "encode")
        self._compile("generator", generator.decoder, "to_latent")
        self._compile("generator", generator.decoder, "decode")
        for network in networks.fixed.values():
            if isinstance(network, FrozenNetwork):
                self._compile("generator", network, "forward")

    def _compile(self, part: str, owner: nn.Module, name: str) -> None:
        """Put in a method's place, if its part is compiled, what runs it compiled, in one graph, or as it is."""
        if part not in self.parts:
            return
        torch._functorch.config.donated_buffer = False  # graphs are gone through backwards more than once
        own: Callable[..., Any] = getattr(owner, name)
        compiled = torch.compile(own, fullgraph=True, mode="reduce-overhead" if self.cuda_graphs else None)

        @wraps(own)
        def either(*arguments: Any, **options: Any) -> Any:
            return (compiled if part in self._compiled_now and not _EAGER.get() else own)(*arguments, **options)

        setattr(owner, name, either)


def _check_compiler(device: torch.device) -> None:
    """Raise UserError where torch.compile finds no compiler for a device."""
    if device.type == "cpu":
        missing = "C++ compiler (g++)" if shutil.which(os.environ.get("CXX", "g++")) is None else ""
    else:
        names = [os.environ.get("CC", ""), "gcc", "clang"]
        has_c = any(shutil.which(name) for name in names if name)
        missing = "Triton" if not has_triton() else "" if has_c else "C compiler (gcc), which Triton needs"
    if missing:
        raise UserError(f"training.compile: there is no {missing}; install one, or set training.compile=off")
