"""RankMe and alpha-ReQ: spectra whose scores are known, and what numpy and scipy say of random features."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from perceptual_mae.evaluation.representation.spectrum import (
    EPSILON,
    alpha_req,
    fitted_ranks,
    rankme,
    spectrum_scores,
)

SCORES = pytest.mark.parametrize("score", [rankme, alpha_req])


def features_of(singular_values: Tensor, count: int, seed: int = 0) -> Tensor:
    """Features (count, D) with these singular values, centred: each direction adds up to 0 over the images."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, len(singular_values), generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(noise - noise.mean(0)).Q
    return left * singular_values @ rotation(len(singular_values))


def rotation(width: int) -> Tensor:
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.linalg.qr(noise).Q


def power_law(width: int, alpha: float) -> Tensor:
    """Singular values whose squares, the eigenvalues of the covariance, fall as rank to the power of -alpha."""
    return torch.arange(1, width + 1, dtype=torch.float64) ** (-alpha / 2)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_equal_singular_values_have_the_rank_of_their_number(width: int) -> None:
    assert rankme(features_of(torch.full((width,), 7.0), 50)) == pytest.approx(width, abs=1e-6)


@pytest.mark.parametrize("width", [16, 128])
def test_of_many_equal_singular_values_the_papers_epsilon_is_all_that_is_added(width: int) -> None:
    share = 1 / width + EPSILON
    expected = math.exp(-width * share * math.log(share))
    assert rankme(features_of(torch.ones(width), 300)) == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(width, rel=1e-4)


def test_features_along_one_direction_have_rank_one() -> None:
    one_direction = torch.rand(40, 1) * torch.rand(1, 12)
    assert rankme(one_direction) == pytest.approx(1, abs=1e-4)
    assert rankme(torch.ones(40, 12)) == pytest.approx(1, abs=1e-4)  # not centred: all images have one and the same
    assert rankme(torch.zeros(40, 12)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", [(200, 24), (24, 200)])
def test_rankme_is_the_entropy_that_scipy_computes_of_numpys_singular_values(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    assert rankme(features) == pytest.approx(math.exp(entropy(values / values.sum())), rel=1e-4)


@SCORES
def test_scores_are_the_same_after_rotation_and_scaling(score) -> None:
    features = torch.randn(90, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64) @ torch.diag(
        power_law(30, 1.2)
    )
    assert score(features @ rotation(30)) == pytest.approx(score(features), rel=1e-7)
    assert score(1e3 * features) == pytest.approx(score(features), rel=1e-7)


@SCORES
def test_scores_do_not_depend_on_the_order_of_images(score) -> None:
    features = torch.randn(60, 20, generator=torch.Generator().manual_seed(3))
    assert score(features.flip(0)) == pytest.approx(score(features), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize(("width", "count"), [(64, 100), (256, 400), (8, 30)])
def test_a_power_law_has_its_exponent(alpha: float, width: int, count: int) -> None:
    features = features_of(power_law(width, alpha), count)
    assert alpha_req(features) == pytest.approx(alpha, abs=1e-6)
    assert alpha_req(features + 5.0) == pytest.approx(alpha, abs=1e-5)  # the covariance knows no mean


def test_alpha_is_the_line_that_numpy_fits_over_the_stated_ranks() -> None:
    features = torch.randn(500, 48, generator=torch.Generator().manual_seed(4)) * torch.linspace(2, 0.1, 48)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(features.double().numpy().T)))[::-1]
    first, last = fitted_ranks(48)
    assert (first, last) == (3, 24)
    slope, _ = np.polyfit(np.log(np.arange(first, last + 1)), np.log(eigenvalues[first - 1 : last]), 1)
    assert alpha_req(features) == pytest.approx(-slope, rel=1e-9)


def test_ranks_are_11_to_100_where_there_are_enough() -> None:
    assert [fitted_ranks(count) for count in (768, 192, 64, 7, 3, 1)] == [
        *((11, 100), (11, 96), (4, 32), (1, 4), (1, 2), (1, 1))
    ]


def test_a_direction_without_variance_changes_no_alpha() -> None:
    """The last layer norm leaves features on a plane: one eigenvalue is nothing but rounding errors."""
    features = features_of(power_law(30, 1.0), 80).float()
    flat = torch.cat([features, torch.full((80, 1), 0.7)], 1) @ rotation(31).float()
    assert alpha_req(flat) == pytest.approx(1.0, abs=1e-3)


def test_collapsed_features_have_no_alpha() -> None:
    for value in (0.0, 1.0, 0.7, 1e3 / 7):
        assert math.isnan(alpha_req(torch.full((20, 8), value)))
    assert math.isnan(alpha_req(torch.rand(2, 8)))
    assert spectrum_scores(torch.ones(20, 8)) == {"rankme": pytest.approx(1, abs=1e-3), "alpha_req": None}


@SCORES
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.rand(1, 8), r"shape \(1, 8\) have no spectrum; give \(N, D\) of two images or more"),
        (torch.rand(8), r"shape \(8,\) have no spectrum"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "not finite"),
        (torch.tensor([[1.0, float("inf")], [0.0, 1.0]]), "not finite"),
    ],
)
def test_what_has_no_spectrum_is_refused_in_a_line(score, features: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        score(features)
    assert "\n" not in str(refused.value)
