"""Heads of the KTH study: what they are, how they are trained, what is reported of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from perceptual_mae.evaluation.representation import kth_heads
from perceptual_mae.evaluation.representation.kth_heads import HEADS, predict, rate, train_and_score, train_head


def noise(count: int, seed: int, classes: int = 2) -> tuple[Tensor, Tensor]:
    """Features that say nothing of their labels: they can only be learnt by heart."""
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % classes


def test_heads_are_what_the_text_says() -> None:
    kinds = {name: [type(layer) for layer in head(6, 4)] for name, head in HEADS.items()}
    assert kinds == {
        "linear": [nn.BatchNorm1d, nn.Linear],
        "dense": [nn.LayerNorm, nn.Linear],
        "mlp": [nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear],
    }
    counts = {name: sum(weight.numel() for weight in head(6, 4).parameters()) for name, head in HEADS.items()}
    assert counts == {"linear": 6 * 4 + 4, "dense": 12 + 6 * 4 + 4, "mlp": 12 + 6 * 12 + 12 + 12 * 4 + 4}


def test_the_rate_rises_over_a_fifth_and_falls_over_the_rest_as_published() -> None:
    assert (rate(0, 1000), rate(200, 1000), rate(1000, 1000)) == pytest.approx((1e-4, 1e-3, 1e-5))
    assert rate(100, 1000) == pytest.approx(5.5e-4)
    assert rate(600, 1000) == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5))  # half of the cosine
    assert rate(400, 1000) == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.slow
def test_an_mlp_head_reads_what_a_linear_layer_cannot() -> None:
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(600, generator=generator)
    features = torch.stack([angles.cos(), angles.sin(), -angles.cos(), -angles.sin()], dim=1)
    labels = ((4 * angles / (2 * math.pi)).long() % 2).long()  # quarters of a circle in turn
    options = {"num_classes": 2, "epochs": 60, "batch_size": 32}
    scores = {
        name: train_and_score(features[:400], labels[:400], features[400:], labels[400:], head=name, **options)
        for name in ("dense", "mlp")
    }
    assert scores["dense"].accuracy < 0.7 < 0.9 < scores["mlp"].accuracy


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_train_and_test_are_each_scored_on_their_own_images(head: str) -> None:
    features, labels = noise(120, seed=1, classes=5)
    test_features, test_labels = noise(300, seed=2, classes=5)
    scores = train_and_score(
        features, labels, test_features, test_labels, num_classes=5, head=head, epochs=150, batch_size=16
    )
    assert scores.train_accuracy > 0.4 > 0.3 > scores.accuracy
    for accuracy, agreement in (
        (scores.accuracy, scores.agreement),
        (scores.train_accuracy, scores.train_agreement),
    ):
        assert agreement == pytest.approx(1 - 2 / 5 * (1 - accuracy))


@pytest.mark.parametrize("head", HEADS)
def test_a_seed_gives_the_same_head_again_and_another_seed_another(head: str) -> None:
    features, labels = noise(64, seed=3)
    options = {"num_classes": 2, "head": head, "epochs": 2, "batch_size": 16}
    before = torch.random.get_rng_state()
    heads = [train_head(features, labels, seed=seed, **options).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    weight = next(name for name, value in heads[0].items() if value.dim() == 2)
    assert torch.equal(heads[0][weight], heads[1][weight])
    assert not torch.equal(heads[0][weight], heads[2][weight])


def test_every_weight_moves_and_images_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = noise(64, seed=4)
    options = {"num_classes": 2, "head": "mlp", "batch_size": 16, "seed": 0}
    start, end = (train_head(features, labels, epochs=epochs, **options) for epochs in (0, 2))
    assert not end.training
    assert all(not torch.equal(end.state_dict()[name], value) for name, value in start.state_dict().items())
    whole = predict(end, features)
    monkeypatch.setattr(kth_heads, "ROWS_AT_ONCE", 10)
    assert torch.equal(predict(end, features), whole)


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    features, labels = noise(10, seed=5)
    scores = train_and_score(features, labels, features, labels, num_classes=2, epochs=3)
    assert scores.accuracy == scores.train_accuracy
