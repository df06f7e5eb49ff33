"""The controller of p: its steps, its bounds, its decision level, its state."""

import math

import pytest
import torch

from discriminators.augmentation.controller import Controller, sign_sums


def sums(r_t: float, count: int = 100) -> torch.Tensor:
    return torch.tensor([r_t * count, count])


@pytest.mark.parametrize(("batch", "step"), [(16, 1.28e-4), (64, 5.12e-4), (128, 1.024e-3)])
def test_p_moves_once_in_four_steps_at_the_papers_speed(batch, step):
    controller = Controller()
    trajectory = []
    for r_t in (0.9, 0.9, 0.9, 0.9, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1):
        controller.observe(sums(r_t), batch)
        trajectory.append(controller.p)
    assert trajectory == pytest.approx([0, 0, 0, step, step, step, step, 2 * step, 2 * step, 2 * step, 2 * step, step])
    assert controller.r_t == pytest.approx(0.1)


def test_from_0_to_1_in_500_thousand_images_and_no_further():
    controller = Controller(p_max=1.0)
    for _ in range(31_248):
        controller.observe(sums(1.0), 16)
    assert controller.p == pytest.approx(31_248 * 16 / 500_000)
    for _ in range(8):
        controller.observe(sums(1.0), 16)
    assert controller.p == 1.0


def test_p_stays_between_0_and_its_bound_and_where_r_t_is_on_target():
    controller = Controller(initial_p=0.84999)
    assert controller.warning is not None
    for _ in range(8):
        controller.observe(sums(1.0), 64)
    assert controller.p == 0.85
    low = Controller(initial_p=1e-5)
    for _ in range(4):
        low.observe(sums(-1.0), 64)
    assert low.p == 0
    still = Controller(target=0.5, initial_p=0.3)
    for _ in range(4):
        still.observe(sums(0.5), 64)
    assert still.p == 0.3


def test_r_t_is_the_mean_over_all_logits_of_the_interval():
    controller = Controller(interval=2)
    controller.observe(torch.tensor([10.0, 10.0]), 10)
    controller.observe(torch.tensor([0.0, 30.0]), 10)
    assert controller.r_t == 0.25


def test_a_least_squares_discriminator_decides_at_one_half():
    """All of its real logits are positive; about 0 p could only ever rise."""
    logits = torch.tensor([1.1, 0.9, 0.6, 0.4])
    assert sign_sums(logits, 0.0).tolist() == [4, 4]
    assert sign_sums(logits, 0.5).tolist() == [2, 4]
    controller = Controller(interval=1, initial_p=0.1)
    controller.observe(sign_sums(logits, 0.5), 4)
    assert controller.r_t == 0.5
    assert controller.p < 0.1
    assert sign_sums(torch.ones(3, 4, 4, dtype=torch.bfloat16), 0.5).tolist() == [48, 48]


def test_sums_of_parts_of_a_batch_make_the_same_p():
    whole, parts = Controller(interval=1), Controller(interval=1)
    logits = torch.randn(64, generator=torch.Generator().manual_seed(0)) + 2
    whole.observe(sign_sums(logits, 0.5), 64)
    parts.observe(sign_sums(logits[0::2], 0.5) + sign_sums(logits[1::2], 0.5), 64)
    assert whole.p == parts.p > 0
    assert whole.r_t == parts.r_t


def test_a_resumed_controller_goes_on_as_one_that_was_not_interrupted():
    unbroken, before = Controller(), Controller()
    for step in range(6):
        for controller in (unbroken, before):
            controller.observe(sums(0.5 + 0.1 * step), 32)
    resumed = Controller()
    resumed.load_state_dict(before.state_dict())
    for step in range(7):
        for controller in (unbroken, resumed):
            controller.observe(sums(1 - 0.1 * step), 32)
    assert resumed.p == unbroken.p
    assert resumed.r_t == unbroken.r_t
    assert resumed.state_dict() == unbroken.state_dict()


def test_a_fresh_state_survives_too_and_holds_numbers_of_fixed_shape():
    state = Controller().state_dict()
    assert all(value.shape == () and value.dtype == torch.float64 for value in state.values())
    again = Controller(initial_p=0.3)
    again.load_state_dict(state)
    assert again.p == 0
    assert math.isnan(again.r_t)


def test_without_a_target_p_is_held_and_r_t_measured():
    controller = Controller(target=None, initial_p=0.2)
    for _ in range(8):
        controller.observe(sums(1.0), 1000)
    assert controller.p == 0.2
    assert controller.r_t == 1.0


def test_p_near_its_bound_warns_and_names_a_key():
    controller = Controller(initial_p=0.8)
    assert controller.warning is None
    controller.p = 0.82
    assert "augment.p_max" in str(controller.warning)


def test_bad_options_are_refused():
    for options in ({"target": 1.0}, {"interval": 0}, {"kimg": 0.0}, {"initial_p": 0.9}, {"p_max": 1.2}):
        with pytest.raises(ValueError, match="ada"):
            Controller(**options)
