"""Memory of training, estimated before anything is allocated: networks without memory, one image through them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.open_run import precision_of
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import pyramid_sizes
from perceptual_mae.masking import num_hidden
from perceptual_mae.schedules import range_of

OPTIMIZER_MOMENTS = 2
"""AdamW and Adam keep two numbers for each parameter."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training holds at least: what stays between steps, and what the backward passes need of a forward.

    Loss networks, augmentation, penalties and what operations use within themselves are not counted, nor is the copy of
    a checkpoint that is being written, in the host's memory.
    """

    weights: int
    gradients: int
    optimizers: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizers + self.average + self.activations

    def __str__(self) -> str:
        parts = vars(self).items()
        return f"{gigabytes(self.total)} ({', '.join(f'{name} {gigabytes(size)}' for name, size in parts if size)})"


def estimate_memory(
    config: RunConfig, generator: MaskedAutoencoder, discriminator: nn.Module | None, processes: int = 1
) -> MemoryEstimate:
    """Return what one process of a run needs; the networks may be on the meta device, and nothing is allocated.

    processes: those that share a batch. Activations are those of one image, times the images of a micro-batch.
    """
    networks = [network for network in (generator, discriminator) if network is not None]
    held = sum(bytes_of(tensor) for network in networks for tensor in (*network.parameters(), *network.buffers()))
    learning = [each for network in networks for each in network.parameters() if each.requires_grad]
    frozen = {id(each) for each in generator.encoder.parameters()} if config.generator.freeze_encoder else set()
    trained = sum(bytes_of(each) for each in learning if id(each) not in frozen)
    average = sum(map(bytes_of, generator.state_dict().values())) if config.training.ema_kimg else 0
    training = config.training
    images = max(1, training.batch_size // (training.accumulation * processes))
    half = 1 if precision_of(training.precision) == "no" else 2  # autocast keeps most activations in 16 bits
    activations = images * _activations(config, generator, discriminator) // half
    return MemoryEstimate(held, trained, OPTIMIZER_MOMENTS * trained, average, activations)


def check_memory(config: RunConfig) -> None:
    """Raise UserError where a run needs more memory than the machine has: of its GPU, or of the host without one."""
    with torch.device("meta"):
        generator = build.build_generator(config.generator, config.data.image, config.training.seed)
        seed, encoder, discriminator = config.training.seed, generator.encoder, None
        with suppress(RuntimeError, AttributeError):  # one of the user's own may need memory
            discriminator = build.build_discriminator(config.discriminator, config.data.image, seed, encoder)
    estimate = estimate_memory(config, generator, discriminator, _processes())
    if (excess := beyond_the_machine(estimate)) is not None:
        raise UserError(f"training needs at least {estimate} of memory, {excess}")


def beyond_the_machine(estimate: MemoryEstimate) -> str | None:
    """Say by how much a run is too large for this machine and what to do, or return None where it is not."""
    memory, whose = machine_memory()
    if estimate.total <= memory:
        return None
    kept = estimate.total - estimate.activations
    remedy = "lower training.batch_size or raise training.accumulation" if kept < memory else "choose a smaller network"
    return f"but {whose} has {gigabytes(memory)}; {remedy}"


def machine_memory() -> tuple[int, str]:
    """Return the bytes of the GPU's memory, or without one of the host's as far as this process may use it."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory), "the GPU"
    memory = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # a container's or a job's share; "max" where there is no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory, "this machine"


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


class _FusedAttention(torch.autograd.Function):
    """Keeps what the fused kernels of attention keep; torch's own formula, which meta tensors take, keeps the maps."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        context.save_for_backward(query, key, value, result)
        return result


class _Inputs(torch.autograd.Function):
    """Keeps what it is given, and returns anything of the first tensor's shape."""

    @staticmethod
    def forward(context: Any, *inputs: Tensor) -> Tensor:
        context.save_for_backward(*inputs)
        return torch.empty_like(inputs[0])


class _WithFusedAttention(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*arguments[:3])
        return function(*arguments, **(options or {}))


def _activations(config: RunConfig, generator: MaskedAutoencoder, discriminator: nn.Module | None) -> int:
    """Return the bytes that the passes of one image through both networks leave for their backward passes."""
    num_patches = generator.grid[0] * generator.grid[1]
    hidden = num_hidden(num_patches, range_of(config.masking.ratio)[0])
    mask = (torch.arange(num_patches, device="cpu") < hidden).unsqueeze(0)
    image, section = config.data.image, config.discriminator
    images = torch.empty(1, image.channels, *image.size, device="meta")
    sizes = pyramid_sizes(build.shown_image(section, image).size)
    shown = [torch.empty(1, image.channels, *size, device="meta") for size in sizes]

    def discriminate() -> None:
        assert discriminator is not None
        with suppress(RuntimeError, ValueError, TypeError):  # one of the user's own may not run without memory
            for _ in ("real", "fake"):
                discriminator(shown)

    networks = [network for network in (generator, discriminator) if network is not None]
    kept, generate = 0, partial(generator, images, mask)
    if discriminator is not None and section is not None:
        kept = int(section.batch_share * saved_bytes(discriminate, networks))
    if not config.training.checkpoint_activations:
        return kept + saved_bytes(generate, networks)
    with _blocks_that_keep_inputs(generator) as calls:
        kept += saved_bytes(generate, networks)
    return kept + max(saved_bytes(partial(block, *inputs), [block]) for block, inputs in calls)


@contextmanager
def _blocks_that_keep_inputs(generator: MaskedAutoencoder) -> Iterator[list[tuple[nn.Module, tuple[Tensor, ...]]]]:
    """Have blocks keep what `recompute_activations` keeps of them; collect them with their inputs."""
    calls: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
    blocks = [*generator.encoder.blocks, *generator.decoder.blocks]

    def keep(block: nn.Module, *inputs: Tensor, **_: Any) -> Tensor:
        calls.append((block, inputs))
        result: Tensor = _Inputs.apply(*inputs)
        return result

    for block in blocks:
        block.forward = partial(keep, block)
    try:
        yield calls
    finally:
        for block in blocks:
            del block.forward


def saved_bytes(forward: Callable[[], object], networks: Sequence[nn.Module]) -> int:
    """Return the bytes that a forward pass through networks keeps for its backward pass, beyond their own tensors.

    On the meta device nothing is allocated.
    """
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    constant = {tensor.untyped_storage()._cdata for tensor in tensors}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in constant:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _WithFusedAttention():
        result = forward()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def _processes() -> int:
    """Return how many processes a launcher started."""
    words = os.environ.get("WORLD_SIZE", "1")
    return max(1, int(words)) if words.isdigit() else 1


def bytes_of(tensor: Tensor) -> int:
    """Return the memory of a tensor's values."""
    return tensor.numel() * tensor.element_size()
