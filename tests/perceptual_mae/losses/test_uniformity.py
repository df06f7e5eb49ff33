"""Uniformity by hand."""

import math

import pytest
import torch

from perceptual_mae.losses.uniformity import uniformity


def tokens_of(*features: tuple[float, float]) -> torch.Tensor:
    """Two patches an image whose mean is the feature, behind a class token that must not count."""
    pooled = torch.tensor(features, dtype=torch.float64)
    offset = torch.tensor([3.0, -2.0], dtype=torch.float64)
    return torch.stack([torch.full_like(pooled, 7.0), pooled + offset, pooled - offset], dim=1)


def test_three_points_on_the_circle() -> None:
    """Squared distances 2, 2 and 4; lengths do not count."""
    loss = uniformity(tokens_of((1.0, 0.0), (0.0, 5.0), (-0.5, 0.0)))
    assert loss.item() == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    assert loss.item() == pytest.approx(-4.39635, abs=1e-5)


def test_equal_features_are_the_worst() -> None:
    assert uniformity(tokens_of((1.0, 2.0), (1.0, 2.0), (2.0, 4.0))).item() == pytest.approx(0, abs=1e-9)


def test_it_pushes_neighbours_apart() -> None:
    tokens = tokens_of((1.0, 0.1), (1.0, -0.1)).requires_grad_()
    uniformity(tokens).backward()
    assert tokens.grad is not None
    upward = -tokens.grad[:, 1:, 1].sum(dim=1)
    assert upward[0] > 0 > upward[1]


def test_a_batch_of_one_has_no_pairs_and_a_gradient_of_zero() -> None:
    tokens = tokens_of((1.0, 0.0)).requires_grad_()
    loss = uniformity(tokens)
    loss.backward()
    assert loss.item() == 0
    assert tokens.grad is not None
    assert not tokens.grad.any()


def test_sharpness_must_be_positive() -> None:
    with pytest.raises(ValueError, match="sharpness"):
        uniformity(tokens_of((1.0, 0.0)), sharpness=0.0)
