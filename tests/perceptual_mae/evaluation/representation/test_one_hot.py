"""Two readings of the same predictions: accuracy, and the one-hot agreement that another study called so."""

import numpy as np
import pytest
import torch
from torch import Tensor

from perceptual_mae.evaluation.representation import kth_heads
from perceptual_mae.evaluation.representation.kth_heads import accuracy_behind, one_hot_agreement

LABELS = torch.arange(10).repeat(100)


def predictions(right: int) -> Tensor:
    """A fixed set of 1,000 predictions over ten balanced classes, `right` of them right, others the next class."""
    return torch.where(torch.arange(1000) < right, LABELS, (LABELS + 1) % 10)


@pytest.mark.parametrize(("right", "reads"), [(530, 0.906), (505, 0.901), (310, 0.862), (665, 0.933)])
def test_the_published_numbers_are_agreements_of_much_lower_accuracies(right: int, reads: float) -> None:
    predicted = predictions(right)
    assert int((predicted == LABELS).sum()) == right
    assert one_hot_agreement(predicted, LABELS, 10) == pytest.approx(reads, abs=1e-12)
    assert accuracy_behind(reads, 10) == pytest.approx(right / 1000, abs=1e-12)


def test_one_guess_for_everything_scores_a_tenth_and_reads_082() -> None:
    guess = torch.full_like(LABELS, 3)
    assert (guess == LABELS).float().mean() == pytest.approx(0.1)
    assert one_hot_agreement(guess, LABELS, 10) == pytest.approx(0.82)
    assert accuracy_behind(0.82, 10) == pytest.approx(0.1)


@pytest.mark.parametrize("classes", [2, 7, 100])
def test_entries_are_counted_one_by_one_in_parts_of_any_size(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(classes)
    guess, truth = random.integers(0, classes, (2, 333))
    literal = np.mean(np.eye(classes)[guess] == np.eye(classes)[truth])
    for entries in (1, 1000, 1 << 24):
        monkeypatch.setattr(kth_heads, "ENTRIES_AT_ONCE", entries)
        found = one_hot_agreement(torch.from_numpy(guess), torch.from_numpy(truth), classes)
        assert found == pytest.approx(literal, abs=1e-12)
    assert accuracy_behind(found, classes) == pytest.approx(np.mean(guess == truth), abs=1e-9)
