"""LARS against steps worked by hand."""

import pytest
import torch

from perceptual_mae.evaluation.representation.lars import LARS


def test_two_steps_of_a_matrix_are_those_worked_by_hand() -> None:
    weights = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = LARS([weights], lr=10.0, momentum=0.5, trust=0.001)
    weights.grad = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    optimizer.step()
    # |w| = 5, |g| = 2: the gradient counts 0.001 * 5 / 2 = 0.0025, the step is 10 * 0.0025 * (0, 2)
    assert weights.tolist()[0] == pytest.approx([3.0, 3.95])
    weights.grad = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    optimizer.step()
    # momentum: half of (0, 0.005), plus 0.001 * |(3, 3.95)| / 1 along the new gradient
    size = (3.0**2 + 3.95**2) ** 0.5
    assert weights.tolist()[0] == pytest.approx([3.0 - 10 * 0.001 * size, 3.95 - 10 * 0.0025])


def test_weight_decay_joins_the_gradient_before_it_is_scaled() -> None:
    weights = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    weights.grad = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    LARS([weights], lr=1.0, momentum=0.0, weight_decay=0.5, trust=0.001).step()
    # g + 0.5 w = (2, 4), of norm sqrt(20)
    ratio = 0.001 * 5 / 20**0.5
    assert weights.tolist()[0] == pytest.approx([3.0 - 2 * ratio, 4.0 - 4 * ratio])


def test_the_length_of_a_step_does_not_depend_on_the_scale_of_the_loss() -> None:
    steps = []
    for scale in (1.0, 1000.0):
        weights = torch.nn.Parameter(torch.ones(2, 3))
        weights.grad = scale * torch.arange(6.0).view(2, 3)
        LARS([weights], lr=1.0).step()
        steps.append(weights.detach() - 1)
    torch.testing.assert_close(steps[0], steps[1])
    assert float(steps[0].norm()) == pytest.approx(0.001 * 6**0.5, rel=1e-4)


def test_biases_take_plain_steps_without_decay() -> None:
    bias = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    bias.grad = torch.tensor([0.0, 2.0])
    LARS([bias], lr=0.1, weight_decay=0.5).step()
    assert bias.tolist() == pytest.approx([3.0, 3.8])


def test_zero_weights_still_move_and_zero_gradients_move_nothing() -> None:
    weights = torch.nn.Parameter(torch.zeros(1, 2))
    optimizer = LARS([weights], lr=0.1)
    weights.grad = torch.zeros(1, 2)
    optimizer.step()
    assert weights.tolist() == [[0.0, 0.0]]
    weights.grad = torch.tensor([[1.0, 0.0]])
    optimizer.step()
    assert weights.tolist()[0] == pytest.approx([-0.1, 0.0])
