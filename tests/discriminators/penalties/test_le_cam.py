"""LeCam: a value worked by hand, running means that neither micro-batches nor processes change, its first step."""

import pytest
import torch

from discriminators.penalties import LeCam, lecam

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-1.5, 0.3])


def test_its_value_is_the_one_worked_by_hand():
    """((2 + .4)^2 + (.5 + .4)^2) / 2 + ((.8 + 1.5)^2 + (.8 - .3)^2) / 2."""
    assert lecam(REAL, FAKE, 0.8, -0.4).item() == pytest.approx(6.055)
    assert lecam(REAL - 3, FAKE, 0.8, -0.4).item() == pytest.approx(2.77)  # real ones below the fake mean are left


def test_maps_of_logits_count_each_logit():
    maps = [logits.view(1, 2, 1).expand(3, 2, 5) for logits in (REAL, FAKE)]
    assert lecam(*maps, 0.8, -0.4).item() == pytest.approx(6.055)


def test_the_penalty_compares_with_the_means_of_earlier_steps():
    penalty = LeCam((32, 32), 2, weight=0.5, decay=0.9, from_step=0)
    assert penalty(REAL, FAKE, 0).item() == 0  # only measured
    penalty.finish()
    assert penalty.expected.tolist() == pytest.approx([1.25, -0.6])  # the first step's means, whole
    value = penalty(REAL + 1, FAKE, 1)
    assert value.item() == pytest.approx(0.5 * lecam(REAL + 1, FAKE, 1.25, -0.6).item())
    penalty.finish()
    assert penalty.expected.tolist() == pytest.approx([(0.9 * 0.125 + 0.1 * 2.25) / 0.19, -0.6])


def test_steps_before_the_first_only_measure():
    penalty = LeCam((32, 32), 2, weight=1.0, from_step=2)
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    values = []
    for step in range(4):
        values.append(penalty(real, fake, step))
        penalty.finish()
    assert [value.item() > 0 for value in values] == [False, False, True, True]
    gradients = torch.autograd.grad(values[0], (real, fake))  # processes wait for all gradients
    assert all(torch.equal(gradient, torch.zeros(2)) for gradient in gradients)
    assert values[2].item() == pytest.approx(lecam(REAL, FAKE, 1.25, -0.6).item())


def test_its_gradient_is_that_of_finite_differences_and_none_goes_through_the_means():
    penalty = LeCam((32, 32), 2, weight=0.3, from_step=0)
    penalty(REAL.double(), FAKE.double(), 0)
    penalty.finish()
    inputs = [logits.double().requires_grad_() for logits in (REAL, FAKE)]
    assert torch.autograd.gradcheck(lambda real, fake: penalty(real, fake, 1), inputs)
    assert not penalty.expected.requires_grad


def test_micro_batches_and_processes_do_not_change_penalty_or_means():
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(3, 2, 8, 2, 2, generator=generator, dtype=torch.float64)  # step, real and fake, image, map
    whole, parts = LeCam((4, 4), 8, from_step=1), [LeCam((4, 4), 8, from_step=1) for _ in range(2)]
    for step, (real, fake) in enumerate(steps):
        value = whole(real, fake, step)
        whole.finish()
        quarters = [
            part(real[2 * rank + micro :: 4], fake[2 * rank + micro :: 4], step)
            for rank, part in enumerate(parts)
            for micro in (0, 1)
        ]
        torch.testing.assert_close(torch.stack(quarters).mean(), value)
        sums = parts[0]._sums + parts[1]._sums
        for part in parts:
            part.finish(lambda _, sums=sums: sums)
            torch.testing.assert_close(part.expected, whole.expected)


def test_it_is_taken_in_full_precision_and_saved():
    penalty = LeCam((32, 32), 2, from_step=0)
    penalty(REAL.bfloat16(), FAKE.bfloat16(), 0)
    penalty.finish()
    again = LeCam((32, 32), 2, from_step=0)
    again.load_state_dict(penalty.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        values = [each(REAL.bfloat16(), FAKE.bfloat16(), 1) for each in (penalty, again)]
    assert values[0].dtype == torch.float32
    assert torch.equal(*values)
    again.finish()
    assert not torch.equal(again.mean, penalty.mean)


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"decay": 1.0}, {"from_step": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="lecam"):
        LeCam((32, 32), 16, **options)
