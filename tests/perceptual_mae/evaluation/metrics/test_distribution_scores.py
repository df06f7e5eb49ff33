"""Frechet distance, kernel distance and Inception Score: closed forms, hand-worked values, three other libraries."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity.metric_isc
import torch_fidelity.metric_kid
from cleanfid import fid as cleanfid
from torch import Tensor

from perceptual_mae.evaluation.metrics.distribution import COMPUTED
from perceptual_mae.evaluation.metrics.frechet import Gaussian, fit_gaussian, frechet_distance
from perceptual_mae.evaluation.metrics.inception_score import inception_score
from perceptual_mae.evaluation.metrics.kernel_distance import kernel_distance, squared_discrepancy
from perceptual_mae.evaluation.metrics.protocol import Setting, UnavailableError


def nowhere(name: str) -> Path:
    raise UnavailableError(f"the weights of {name} are not installed")


def features(num_images: int, dim: int, seed: int, *, shift: float = 0.0, spread: float = 1.0) -> Tensor:
    """Correlated, non-negative float32 features, as those of a network are."""
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    return (torch.randn(num_images, dim, generator=draws) @ mixing * spread + shift).relu()


def gaussian(mean: list[float], covariance: list[list[float]]) -> Gaussian:
    return Gaussian(torch.tensor(mean).double(), torch.tensor(covariance).double(), 10)


def test_identical_features_are_at_distance_0_even_where_their_covariance_is_singular() -> None:
    few = 10 * features(40, 64, seed=0)  # rank 39 of 64
    many = 10 * features(400, 64, seed=0)
    for found in (few, many):
        assert frechet_distance(fit_gaussian(found), fit_gaussian(found.clone())) < 1e-6


def test_one_dimensional_gaussians_have_their_closed_form() -> None:
    # (m1 - m2)^2 + (s1 - s2)^2: N(0, 1) against N(1, 4) is 1 + 1
    assert frechet_distance(gaussian([0.0], [[1.0]]), gaussian([1.0], [[4.0]])) == pytest.approx(2.0, abs=1e-12)


def test_gaussians_with_one_basis_have_their_closed_form_and_others_the_root_of_a_2x2_product() -> None:
    first = gaussian([0.0, 2.0], [[9.0, 0.0], [0.0, 1.0]])
    second = gaussian([1.0, 0.0], [[4.0, 0.0], [0.0, 16.0]])
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + (3 - 2) ** 2 + (1 - 4) ** 2, abs=1e-12)
    # Of a 2x2 matrix M with eigenvalues >= 0: Tr M^(1/2) = (Tr M + 2 det(M)^(1/2))^(1/2).
    turned = gaussian([0.0, 2.0], [[5.0, 2.0], [2.0, 3.0]])
    product = turned.covariance @ second.covariance
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    assert frechet_distance(turned, second) == pytest.approx(1 + 4 + 8 + 20 - 2 * root, abs=1e-12)
    assert frechet_distance(turned, second) == pytest.approx(frechet_distance(second, turned), abs=1e-12)


@pytest.mark.slow
def test_the_distance_and_its_moments_are_those_of_torchmetrics_and_of_clean_fid() -> None:
    from torchmetrics.image.fid import _compute_fid

    first, second = features(300, 24, seed=1), features(280, 24, seed=2, shift=0.1, spread=1.3)
    one, two = fit_gaussian(first), fit_gaussian(second)
    ours = frechet_distance(one, two)
    np.testing.assert_allclose(one.covariance.numpy(), np.cov(first.double().numpy().T), rtol=1e-10, atol=1e-14)
    theirs = _compute_fid(one.mean, one.covariance, two.mean, two.covariance)
    assert ours == pytest.approx(float(theirs), rel=1e-6)
    root = pytest.importorskip("scipy.linalg").sqrtm((one.covariance @ two.covariance).numpy())
    traces = float(one.covariance.trace() + two.covariance.trace())
    # clean-fid's own function calls this root with an argument that SciPy has dropped; its formula is spelled out here.
    cleans = float((one.mean - two.mean).square().sum()) + traces - 2 * float(np.trace(root).real)
    assert ours == pytest.approx(cleans, rel=1e-6)
    assert ours > 0.1


def test_moments_do_not_depend_on_how_many_rows_are_summed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = features(100, 8, seed=3)
    whole = fit_gaussian(found)
    monkeypatch.setattr("perceptual_mae.evaluation.metrics.frechet.ROWS_AT_ONCE", 7)
    torch.testing.assert_close(fit_gaussian(found).covariance, whole.covariance, rtol=1e-13, atol=1e-15)


def test_a_far_mean_costs_the_covariance_no_digits() -> None:
    found = features(50, 4, seed=4).double()
    torch.testing.assert_close(
        fit_gaussian(found + 1e6).covariance, fit_gaussian(found).covariance, rtol=1e-6, atol=1e-9
    )


def test_the_discrepancy_of_two_pairs_is_worked_by_hand() -> None:
    # d = 2; within x and within y the off-diagonal kernel is 1, across its mean is (1.5^3 + 1 + 1.5^3 + 1) / 4
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double()
    assert squared_discrepancy(x, y) == pytest.approx(1 + 1 - 2 * 2.1875, abs=1e-12)


def test_a_kernel_distance_of_all_images_is_that_of_three_other_libraries() -> None:
    from torchmetrics.image.kid import poly_mmd

    first, second = features(60, 16, seed=5), features(60, 16, seed=6, shift=0.2)
    found = kernel_distance(first, second)
    assert (found.subsets, found.subset_size, found.std) == (1, 60, None)
    cleans = cleanfid.kernel_distance(first.double().numpy(), second.double().numpy(), num_subsets=2)
    fidelity = torch_fidelity.metric_kid.kid_features_to_metric(
        first.double(), second.double(), kid_subsets=2, kid_subset_size=60, verbose=False
    )["kernel_inception_distance_mean"]
    theirs = [cleans, fidelity, float(poly_mmd(first.double(), second.double()))]
    assert theirs == pytest.approx([found.mean] * 3, rel=1e-9)


def test_subsets_agree_with_torch_fidelity_s_within_their_own_uncertainty() -> None:
    first, second = features(400, 16, seed=7), features(500, 16, seed=8, shift=0.3)
    ours = kernel_distance(first, second, subsets=100, subset_size=100)
    theirs = torch_fidelity.metric_kid.kid_features_to_metric(
        first, second, kid_subsets=100, kid_subset_size=100, verbose=False
    )
    # Each mean of 100 subsets is off by about deviation / 10; their difference, by root 2 of that; four of these.
    assert ours.std is not None
    allowed = 4 * math.sqrt(2) * ours.std / 10
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=allowed)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=0.4)
    assert ours.mean > allowed


def test_subsets_are_drawn_by_the_seed_alone() -> None:
    first, second = features(50, 4, seed=9), features(50, 4, seed=10)
    torch.manual_seed(0)
    found = kernel_distance(first, second, subsets=3, subset_size=20)
    torch.manual_seed(1)
    assert found == kernel_distance(first, second, subsets=3, subset_size=20)
    assert found != kernel_distance(first, second, subsets=3, subset_size=20, seed=1)


def test_an_inception_score_is_worked_by_hand() -> None:
    rows = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    score, deviation = inception_score(rows, splits=1)
    assert score == pytest.approx(1.444935, abs=1e-6)
    assert deviation == 0
    certain = torch.eye(4).repeat(5, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(4.0, abs=1e-9)  # sure, and evenly of 4 classes
    assert inception_score(torch.full((40, 4), 0.25))[0] == pytest.approx(1.0, abs=1e-9)


def test_sorted_classes_are_shuffled_before_they_are_cut_into_parts() -> None:
    by_class = torch.eye(10).repeat_interleave(100, 0)
    score, _ = inception_score(by_class)
    assert score > 8  # parts of one class each would have 1


def test_an_inception_score_is_torch_fidelity_s_of_the_same_parts() -> None:
    logits = torch.randn(95, 7, generator=torch.Generator().manual_seed(11)) * 2
    theirs = torch_fidelity.metric_isc.isc_features_to_metric(logits, splits=1, shuffle=False)
    score, deviation = inception_score(logits.softmax(1), splits=1)
    assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    many = [inception_score(logits.softmax(1), seed=seed)[0] for seed in range(20)]
    other = [
        torch_fidelity.metric_isc.isc_features_to_metric(logits, rng_seed=seed)["inception_score_mean"]
        for seed in range(20)
    ]
    assert np.mean(many) == pytest.approx(np.mean(other), abs=4 * np.std(other) / math.sqrt(20) * math.sqrt(2))
    assert deviation == 0


@pytest.mark.parametrize("score", [fit_gaussian, lambda rows: kernel_distance(rows, rows), inception_score])
def test_too_few_images_are_refused(score) -> None:
    with pytest.raises(ValueError, match=r"1 images|not 1"):
        score(torch.ones(1, 3))


def test_a_kernel_distance_s_std_is_that_of_the_population_of_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1.0, 3.0, 5.0])
    monkeypatch.setattr(
        "perceptual_mae.evaluation.metrics.kernel_distance.squared_discrepancy", lambda x, y: next(values)
    )
    found = kernel_distance(torch.rand(9, 2), torch.rand(9, 2), subsets=3, subset_size=4)
    assert (found.mean, found.std) == (3.0, pytest.approx((8 / 3) ** 0.5))


def test_an_inception_score_is_drawn_by_the_seed_of_its_setting() -> None:
    probabilities = {"raw": torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)}
    for seed in (0, 5):
        setting = Setting((32, 32), 3, torch.device("cpu"), 200, nowhere, 8, seed=seed)
        scores, metadata = COMPUTED["is"](probabilities, setting)
        assert (scores["raw"], metadata["deviation"]["raw"]) == inception_score(probabilities["raw"], seed=seed)
        assert metadata["seed"] == seed
    assert inception_score(probabilities["raw"], seed=0) != inception_score(probabilities["raw"], seed=5)
