"""Operations, passes and bytes of a step, against hand-worked numbers and torch's own record of allocations."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.profiler import profile

from conftest import debug_trainer, random_batches
from perceptual_mae.benchmark.flops_memory import (
    Footprint,
    count_flops,
    count_step,
    counted_forwards,
    kept_storages,
    peak_memory,
)
from perceptual_mae.schedules import TrainingProgress
from perceptual_mae.training.trainer import Trainer


def passes(trainer: Trainer, epoch: int, step: int, micro_batches: int = 1) -> tuple[float, float]:
    batches = random_batches(4, micro_batches)
    counts = count_step(trainer, 4, partial(trainer.step, batches, TrainingProgress(epoch, step, 0.5)))
    return counts.generator_passes, counts.discriminator_passes


def test_flops_are_two_for_a_multiplication_and_an_addition_there_and_back() -> None:
    layer, rows = nn.Linear(3, 5, bias=False), torch.ones(7, 3)
    assert count_flops(lambda: layer(rows)) == 2 * 7 * 3 * 5
    assert count_flops(lambda: layer(rows).sum().backward()) == 2 * 2 * 7 * 3 * 5  # the rows need no gradient


def test_images_are_counted_however_they_are_passed() -> None:
    network = nn.Identity()
    with counted_forwards(network) as counts:
        network(torch.ones(3, 1))
        network((torch.ones(5, 1), torch.ones(5, 1)))
    network(torch.ones(2, 1))
    assert counts == [3, 5]


@pytest.mark.parametrize(
    ("order", "epoch", "step", "expected"),
    [
        ("lean", 1, 1, (1, 2)),  # real and fake, for both halves
        ("lean", 2, 1, (1, 2)),
        ("lean", 2, 4, (1.5, 2.5)),  # path length, on half the images
        ("sequential", 1, 1, (1, 3)),  # the fake again
        ("sequential", 2, 1, (1, 4)),  # and the real, whose features are compared
    ],
)
def test_passes_a_step(order: str, epoch: int, step: int, expected: tuple[float, float]) -> None:
    assert passes(debug_trainer("stylegan2_ada_p", f"training.order={order}"), epoch, step) == expected


def test_a_plain_step_has_no_discriminator_and_micro_batches_in_turns_run_the_generator_again() -> None:
    assert passes(debug_trainer("mse"), 1, 1) == (1, 0)
    assert passes(debug_trainer("ls_gan_p", "training.order=sequential"), 1, 1, micro_batches=2) == (2, 3)


def test_a_footprint_adds_what_is_made_and_takes_off_what_is_gone() -> None:
    known = torch.zeros(1000)
    with Footprint({known.untyped_storage().data_ptr()}) as footprint:
        first = torch.zeros(1000)
        second = known + 1
        del first
        third = second * 2  # 8,000 bytes again
        view = third.view(10, 100)
        known.add_(1)
        del second, third, view
        torch.zeros(500)
    assert footprint.peak == 8000


def test_the_peak_of_a_pass_is_that_of_torchs_own_record() -> None:
    network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    rows = torch.randn(128, 64)

    def run() -> None:
        network.zero_grad()
        network(rows).relu().square().sum().backward()

    run()
    with Footprint({tensor.untyped_storage().data_ptr() for tensor in network.parameters()}) as footprint:
        run()
    network.zero_grad()
    with profile(profile_memory=True) as profiled:
        run()
    results = profiled.profiler.kineto_results
    now = peak = 0
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert footprint.peak == peak


def test_a_trainer_keeps_weights_buffers_two_moments_each_and_the_average() -> None:
    trainer = debug_trainer("ls_gan_p", "training.ema_kimg=1")
    trainer.step(random_batches(4), TrainingProgress(1, 1, 0.0))
    weights, fixed = (
        sum(
            tensor.numel()
            for network in (trainer.unwrapped_generator, trainer.unwrapped_discriminator)
            for tensor in kind(network)
        )
        for kind in (nn.Module.parameters, nn.Module.buffers)
    )
    average = sum(tensor.numel() for tensor in (*trainer.ema.parameters(), *trainer.ema.buffers()))
    kept = sum(kept_storages(trainer).values())
    assert 4 * (3 * weights + fixed + average) <= kept <= 1.01 * 4 * (3 * weights + fixed + average)  # counts of steps


def test_a_larger_batch_takes_more_memory_than_what_is_kept() -> None:
    trainer = debug_trainer("mse")

    def peak(size: int) -> int:
        batches = random_batches(size)
        return peak_memory(trainer, lambda: len(trainer.step(batches, TrainingProgress(1, 1, 0.0))))[0]

    peak(4)
    kept = sum(kept_storages(trainer).values())
    four, eight = peak(4), peak(8)
    assert kept < four < eight < kept + 2.1 * (four - kept)
