"""Activations that are computed again give the same gradients from less memory."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from conftest import debug_config, debug_trainer, random_batches, slow
from perceptual_mae.benchmark.flops_memory import Footprint, count_flops
from perceptual_mae.config import build
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.masking import num_hidden
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.memory import estimate_memory
from perceptual_mae.training.trainer import Trainer

AGAIN = "training.checkpoint_activations=true"


def gradients_of(trainer: Trainer, progress: TrainingProgress, micro_batches: int = 1) -> tuple[list[Tensor], Any]:
    """All gradients that the updates of a step are made by, and the step's scalars."""
    collected: list[Tensor] = []
    update = Trainer.update

    def collect(self: Trainer, *arguments: Any) -> Any:
        collected.extend(each.grad.clone() for each in self.trained_parameters if each.grad is not None)
        return update(self, *arguments)

    with mock.patch.object(Trainer, "update", collect):
        scalars = trainer.step(random_batches(4, micro_batches), progress)
    return collected, scalars


CASES = [
    ("mse", "generator.drop_path=0.3", "generator.relative_positions=true"),
    slow("ls_gan_p", "training.order=sequential", "generator.decoder_attention=cross"),
    slow("msg_gan_p", "generator.encoder_mask_tokens=true", "losses.adversarial.reach=decoder"),
    slow("gan_mae", "training.order=lean", "generator.positions=learned"),
    slow("stylegan2_ada_p", "augment.initial_p=0.3", "penalties.path_length.every=4"),
]


@pytest.mark.parametrize(("method", "one", "other"), CASES)
def test_gradients_are_equal_to_the_last_digits(method: str, one: str, other: str) -> None:
    plain, again = (debug_trainer(method, one, other, *more, dtype=torch.float64) for more in ((), (AGAIN,)))
    for step in (8, 9):  # penalties, measurements and the path length are due; then none
        for micro_batches in (1, 2):
            progress = TrainingProgress(2, step, 0.5)
            expected, scalars = gradients_of(plain, progress, micro_batches)
            found, others = gradients_of(again, progress, micro_batches)
            assert len(found) == len(expected) > 0
            for own, value in zip(found, expected, strict=True):
                torch.testing.assert_close(own, value, rtol=1e-12, atol=1e-12 * float(value.abs().max()))
            for name, value in scalars.items():
                torch.testing.assert_close(others[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_each_block_is_computed_once_more_and_scoring_computes_none_again() -> None:
    plain, again = debug_trainer("mse"), debug_trainer("mse", AGAIN)
    flops = [count_flops(partial(each.step, random_batches(4), TrainingProgress(1, 1, 0.5))) for each in (plain, again)]
    generator = plain.unwrapped_generator
    mask = (torch.arange(16) < 12).expand(4, -1)

    def blocks() -> None:
        for part, tokens in ((generator.encoder, 5), (generator.decoder, 17)):
            for block in part.blocks:
                block(torch.rand(4, tokens, 32))

    last_maps = 2 * 128 * 32 * 4 * (2 * 5 + 4 * 17)  # of each block's MLP: nothing needs its result again
    assert flops[1] - flops[0] == count_flops(blocks) - last_maps
    with torch.no_grad():
        scored = [
            count_flops(partial(each.unwrapped_generator, torch.rand(4, 3, 32, 32), mask)) for each in (plain, again)
        ]
    assert scored[0] == scored[1]


def held_after_forward(config: RunConfig, act: Callable[[Any], None]) -> int:
    """Bytes alive after a forward pass of the generator, beyond its weights and inputs."""
    generator = build.build_generator(config.generator, config.data.image, 0)
    act(generator)
    size, patches = config.training.batch_size, generator.grid[0] * generator.grid[1]
    images = torch.rand(size, 3, *config.data.size)
    mask = (torch.arange(patches) < num_hidden(patches, 0.75)).expand(size, -1)
    gc.collect()
    with Footprint() as footprint:
        result = generator(images, mask)
        gc.collect()
    assert result is not None
    return footprint._now


@pytest.mark.slow
def test_the_estimate_of_memory_follows() -> None:
    options = ("mse", "generator.depth=8", "generator.decoder_depth=8")
    estimates = []
    for more in ((), (AGAIN,)):
        config = debug_config(*options, *more)
        with torch.device("meta"):
            generator = build.build_generator(config.generator, config.data.image, 0)
        estimates.append(estimate_memory(config, generator, None).activations)
    config = debug_config(*options)
    plain = held_after_forward(config, lambda generator: None)
    again = held_after_forward(config, lambda generator: generator.recompute_activations())
    assert estimates[1] < 0.4 * estimates[0]
    block = 8 * 17 * 32 * 4 * 17  # of one decoder block: what its backward pass computes again, about
    assert estimates[0] - estimates[1] == pytest.approx(plain - again - block, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("compile_", ["discriminator", "all"])
def test_it_goes_with_compiled_networks(compile_: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    plain = debug_trainer("ls_gan_p", dtype=torch.float64)
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        again = debug_trainer("ls_gan_p", AGAIN, f"training.compile={compile_}", dtype=torch.float64)
    for step in (9, 10, 11):
        progress = TrainingProgress(2, step, 0.5)
        expected, found = gradients_of(plain, progress)[0], gradients_of(again, progress)[0]
        for own, value in zip(found, expected, strict=True):
            torch.testing.assert_close(own, value, rtol=1e-8, atol=1e-9 * float(value.abs().max()))
    assert not counters["graph_break"]
    torch._dynamo.reset()
