"""The optimisers of linear probes against steps worked by hand and LARS written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perceptual_mae.evaluation.representation.probe_head import ProbeHead, lars
from perceptual_mae.schedules import set_learning_rate

RATE = 6.4


class WrittenOut:
    """LARS of You, Gitman and Ginsburg without weight decay; vectors take plain SGD steps."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.momentum = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for parameter, momentum in zip(self.parameters, self.momentum, strict=True):
            assert parameter.grad is not None
            size, slope = float(parameter.norm()), float(parameter.grad.norm())
            ratio = 0.001 * size / slope if parameter.ndim > 1 and size > 0 and slope > 0 else 1.0
            momentum.mul_(0.9).add_(parameter.grad, alpha=ratio)
            parameter.sub_(rate * momentum)


def take_step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    set_learning_rate(optimizer, rate)
    optimizer.step()


def test_twenty_steps_of_a_probe_equal_lars_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(256, 48, generator=generator)
    labels = torch.randint(0, 10, (256,), generator=generator)
    heads = [ProbeHead(48, 10).train() for _ in range(2)]
    optimizer, reference = lars(list(heads[0].parameters())), WrittenOut(list(heads[1].parameters()))
    for step in range(20):
        for head in heads:
            head.zero_grad()
            F.cross_entropy(head(features)[0], labels).backward()
        rate = RATE * (1 - step / 20)
        take_step(optimizer, rate)
        reference.step(rate)
    for one, other in zip(*(head.parameters() for head in heads), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_two_steps_of_a_matrix_are_those_worked_by_hand() -> None:
    weights = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = lars([weights])
    weights.grad = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    take_step(optimizer, 10.0)
    # |w| = 5, |g| = 2: the gradient counts 0.001 * 5 / 2 = 0.0025, the step is 10 * 0.0025 * (0, 2)
    assert weights.tolist()[0] == pytest.approx([3.0, 3.95])
    weights.grad = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    take_step(optimizer, 10.0)
    # momentum: nine tenths of (0, 0.005), plus 0.001 * |(3, 3.95)| / 1 along the new gradient
    size = (3.0**2 + 3.95**2) ** 0.5
    assert weights.tolist()[0] == pytest.approx([3.0 - 10 * 0.001 * size, 3.95 - 10 * 0.9 * 0.005])


def test_the_length_of_a_step_does_not_depend_on_the_scale_of_the_loss() -> None:
    steps = []
    for scale in (1.0, 1000.0):
        weights = torch.nn.Parameter(torch.ones(2, 3))
        weights.grad = scale * torch.arange(6.0).view(2, 3)
        take_step(lars([weights]), 1.0)
        steps.append(weights.detach() - 1)
    torch.testing.assert_close(steps[0], steps[1])
    assert float(steps[0].norm()) == pytest.approx(0.001 * 6**0.5, rel=1e-4)


def test_biases_take_plain_steps() -> None:
    bias = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    bias.grad = torch.tensor([0.0, 2.0])
    take_step(lars([bias]), 0.1)
    assert bias.tolist() == pytest.approx([3.0, 3.8])


def test_zero_weights_still_move_and_zero_gradients_move_nothing() -> None:
    weights = torch.nn.Parameter(torch.zeros(1, 2))
    optimizer = lars([weights])
    weights.grad = torch.zeros(1, 2)
    take_step(optimizer, 0.1)
    assert weights.tolist() == [[0.0, 0.0]]
    weights.grad = torch.tensor([[1.0, 0.0]])
    take_step(optimizer, 0.1)
    assert weights.tolist()[0] == pytest.approx([-0.1, 0.0])
