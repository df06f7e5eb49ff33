"""Nearest neighbours against a loop over pairs and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from perceptual_mae.evaluation.representation import knn
from perceptual_mae.evaluation.representation.knn import knn_accuracies


def noisy(count: int, seed: int, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    centres = torch.randn(5, width, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(count, width, generator=generator), labels


def brute_force(
    features: Tensor, labels: Tensor, tests: Tensor, test_labels: Tensor, k: int, temperature: float
) -> float:
    right = 0
    for test, wanted in zip(tests.tolist(), test_labels.tolist(), strict=True):
        pairs = []
        for feature, label in zip(features.tolist(), labels.tolist(), strict=True):
            product = sum(a * b for a, b in zip(test, feature, strict=True))
            pairs.append((product / math.hypot(*test) / math.hypot(*feature), label))
        votes: dict[int, float] = {}
        for similarity, label in sorted(pairs, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        right += max(votes, key=votes.__getitem__) == wanted
    return right / len(tests)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_accuracies_are_those_of_a_loop_over_all_pairs(temperature: float) -> None:
    train, test = noisy(60, 0), noisy(41, 1)
    found = knn_accuracies(*train, *test, neighbours=(1, 5, 20), temperature=temperature)
    assert found == {k: pytest.approx(brute_force(*train, *test, k, temperature)) for k in (1, 5, 20)}
    assert len(set(found.values())) > 1


def test_accuracies_are_those_of_scikit_learn() -> None:
    (features, labels), (tests, test_labels) = noisy(500, 0), noisy(300, 1)
    found = knn_accuracies(features, labels, tests, test_labels)
    for k in (10, 20, 100, 200):
        reference = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        reference.fit(features.double().numpy(), labels.numpy())
        expected = reference.score(tests.double().numpy(), test_labels.numpy())
        assert found[k] == pytest.approx(expected, abs=1.5 / 300)  # one image may sit on the fence in float32


@pytest.mark.parametrize("at_once", [1, 500, 1000, 10**9])
@pytest.mark.parametrize("count", [1, 7, 99, 101])
def test_the_size_of_the_parts_changes_nothing(count: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = noisy(150, 0), noisy(count, 1)
    whole = knn_accuracies(*train, *test, neighbours=(10,))
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", at_once)
    assert knn_accuracies(*train, *test, neighbours=(10,)) == whole


def test_the_length_of_features_does_not_count() -> None:
    (features, labels), test = noisy(100, 0), noisy(50, 1)
    longer = features * torch.logspace(-2, 2, 100)[:, None]
    assert knn_accuracies(longer, labels, *test) == knn_accuracies(features, labels, *test)


def test_more_neighbours_than_images_are_left_out_and_none_is_refused() -> None:
    assert list(knn_accuracies(*noisy(100, 0), *noisy(9, 1))) == [10, 20, 100]
    with pytest.raises(ValueError, match="9 training features hold no 10 neighbours"):
        knn_accuracies(*noisy(9, 0), *noisy(9, 1))


def test_votes_neither_overflow_nor_vanish_at_a_low_temperature() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.1]])
    found = knn_accuracies(
        features, torch.tensor([0, 1, 1]), features[:1], torch.tensor([0]), neighbours=(3,), temperature=1e-4
    )
    assert found == {3: 1.0}  # the identical image outvotes two that are nearly so


def test_half_precision_features_are_compared_in_float32() -> None:
    (features, labels), (tests, test_labels) = noisy(100, 0), noisy(50, 1)
    half = knn_accuracies(features.half(), labels, tests.half(), test_labels)
    rounded = knn_accuracies(features.half().float(), labels, tests.half().float(), test_labels)
    assert half == rounded
