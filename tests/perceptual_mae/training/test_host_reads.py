"""No ordinary step reads on the host what a GPU computes: it would wait there for all that was launched before.

The same is asked of a GPU itself in `test_every_method`; here a CPU plays one. Weights, and what is sent to the device,
count as on it, and so does whatever is computed from them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import debug_config, debug_trainer, halved, random_batches
from perceptual_mae.config.layers import list_methods
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer

METHODS = sorted(method.name for method in list_methods())
QUICK = ("mse", "ls_gan_p")
aten = torch.ops.aten
READING_OPERATIONS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten.repeat_interleave),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.is_nonzero, aten.item),
}
"""Operations whose result is a number of Python, or a tensor of a shape that only the values decide."""
READING_METHODS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
"""Methods that read the memory of a CPU's tensor without any operation."""


class _OnDevice:
    """Tensors that a GPU would hold, by their memory, which is kept while this lives; and what was read of them."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.reads: list[str] = []

    def add(self, tensors: Any) -> None:
        for each in tree_leaves(tensors):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                self.storages[storage._cdata] = storage

    def holds(self, tensors: Any) -> bool:
        leaves = tree_leaves(tensors)
        return any(isinstance(each, Tensor) and each.untyped_storage()._cdata in self.storages for each in leaves)


class _Operations(TorchDispatchMode):
    """Follows what is computed from tensors on the device, backward passes and optimisers included."""

    def __init__(self, device: _OnDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        if self.device.holds((arguments, options)):
            packet, indices = function._overloadpacket, tree_leaves(arguments[1:2])
            by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
                isinstance(each, Tensor) and each.dtype == torch.bool for each in indices
            )
            if packet in READING_OPERATIONS or by_mask:
                self.device.reads.append(str(function))
            self.device.add(result)
        return result


class _Methods(TorchFunctionMode):
    """Notices reads that are no operations, and what `to` sends to the device, which a CPU leaves where it is."""

    def __init__(self, device: _OnDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function in READING_METHODS and self.device.holds(arguments[0]):
            self.device.reads.append(function.__name__)
        result = function(*arguments, **(options or {}))
        targets = (*arguments[1:], (options or {}).get("device"))
        if function is Tensor.to and any(isinstance(each, torch.device) for each in targets):
            result = result.clone() if result is arguments[0] else result
            self.device.add(result)
        return result


@contextmanager
def host_reads(trainer: Trainer) -> Iterator[list[str]]:
    """Collect what is read on the host of anything that a GPU would hold."""
    device = _OnDevice()
    for network in (trainer.unwrapped_generator, trainer.networks.fixed, trainer.networks.copies):
        device.add([*network.parameters(), *network.buffers()])
    if trainer.adversary is not None:
        network = trainer.unwrapped_discriminator
        device.add([*network.parameters(), *network.buffers()])
    with _Operations(device), _Methods(device):
        yield device.reads


def after_warm_up(method: str, *arguments: str) -> Trainer:
    augment = debug_config(method).augment
    acting = ["augment.initial_p=0.5"] if augment is not None and augment.kind == "ada" else []
    trainer = debug_trainer(method, *acting, *arguments)
    for step in range(2):
        trainer.step(random_batches(4), TrainingProgress(1 + step, step, 0.5))
    return trainer


@pytest.mark.parametrize("method", [*QUICK, *halved([name for name in METHODS if name not in QUICK])])
def test_an_ordinary_step_reads_nothing_of_the_device(method: str) -> None:
    for order in ("lean", "sequential"):
        trainer = after_warm_up(method, f"training.order={order}")
        with host_reads(trainer) as reads:
            trainer.step(random_batches(4), TrainingProgress(2, 9, 0.5))  # no penalty, measurement or record is due
        assert reads == []


def _of_mask(fake: Tensor) -> object:
    return fake[fake > 0]


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "_local_scalar_dense": lambda fake: fake.mean().item(),
    "_local_scalar_dense.": lambda fake: bool((fake > 0).any()),
    "_local_scalar_dense of a sum": lambda fake: float(fake.detach().sum() * 2),
    "nonzero": lambda fake: (fake > 0).nonzero(),
    "index": _of_mask,
    "tolist": lambda fake: fake.detach().flatten()[:2].tolist(),
    "numpy": lambda fake: fake.detach().numpy(),
    "cpu": lambda fake: fake.detach().cpu(),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_read_within_a_loss_is_noticed(name: str) -> None:
    trainer = after_warm_up("l1")
    line = trainer.objective.lines["l1"]
    distance = line.term.function

    def reading(fake: Any, *arguments: Any, **options: Any) -> Tensor:
        PLANTED[name](fake[0])
        return distance(fake, *arguments, **options)

    trainer.objective.lines["l1"] = replace(line, term=replace(line.term, function=reading))
    with host_reads(trainer) as reads:
        trainer.step(random_batches(4), TrainingProgress(2, 9, 0.5))
    assert reads
    assert all(name.split()[0].strip(".") in read for read in reads)
