"""Linear probes on made-up features: what is fitted, what it is chosen by, and what never enters."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from perceptual_mae.evaluation.representation import linear_probe as probe
from perceptual_mae.evaluation.representation.kth_heads import HEADS, linear_head, train_head
from perceptual_mae.evaluation.representation.linear_probe import CANDIDATES, fit_probe, linear_probe
from perceptual_mae.evaluation.representation.probe_head import (
    ProbeHead,
    accuracies,
    fit_in_batches,
    fit_lbfgs,
    set_statistics,
)
from perceptual_mae.seeding import stream

OPTIMIZERS = list(CANDIDATES)


def clusters(count: int, *, spread: float, classes: int = 4, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features about one centre a class, on very different scales and far from 0."""
    centres = 4 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    features = centres[labels] + spread * torch.randn(count, width, generator=generator)
    return features * torch.logspace(-2, 2, width) + 5, labels


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_separable_features_are_read_without_a_mistake(optimizer: str) -> None:
    result = linear_probe(
        *clusters(400, spread=0.1), *clusters(200, spread=0.1, seed=1), optimizer=optimizer, epochs=20, batch_size=32
    )
    assert result.accuracy == 1.0


def test_a_constant_predictor_of_ten_balanced_classes_scores_a_tenth() -> None:
    head = ProbeHead(3, 10)
    head.copies()[0].weight.data.zero_()
    head.copies()[0].bias.data[7] = 1.0
    correct, losses = accuracies(head, torch.randn(500, 3), torch.arange(10).repeat(50))
    assert correct == pytest.approx([0.1])
    assert losses == pytest.approx([math.log(9 + math.e) - 0.1], rel=1e-6)


@pytest.mark.gpu
def test_a_small_problem_of_lbfgs_is_solved_on_the_cpu_and_its_head_comes_back_to_the_device() -> None:
    features, labels = clusters(200, spread=3.0)
    of_cpu, of_gpu = fit_probe(features, labels), fit_probe(features.cuda(), labels.cuda())
    assert of_gpu.head.copies()[0].weight.is_cuda
    assert torch.equal(of_gpu.head.copies()[0].weight.cpu(), of_cpu.head.copies()[0].weight)
    assert of_gpu.tried == of_cpu.tried


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_head_moves_and_the_statistics_move(optimizer: str) -> None:
    features, labels = clusters(200, spread=3.0)
    before = ProbeHead(8, 4, seed=5)
    fitted = fit_probe(features, labels, optimizer=optimizer, epochs=3, batch_size=32, seed=5)
    assert not torch.equal(fitted.head.copies()[0].weight, before.copies()[0].weight)
    assert not torch.equal(fitted.head.norm.running_mean, before.norm.running_mean)
    assert not torch.equal(fitted.head.norm.running_var, before.norm.running_var)
    assert [name for name, _ in fitted.head.named_parameters()] == ["linears.0.weight", "linears.0.bias"]


def test_statistics_are_those_of_all_features() -> None:
    features, _ = clusters(300, spread=1.0)
    head = ProbeHead(8, 4)
    normalised = set_statistics(head, features)
    torch.testing.assert_close(head.norm.running_mean, features.mean(0))
    torch.testing.assert_close(head.norm.running_var, features.var(0))
    torch.testing.assert_close(normalised, (features - features.mean(0)) / (features.var(0) + 1e-6).sqrt())


@pytest.mark.parametrize("l2", [0.1, 0.001])
def test_lbfgs_finds_what_scikit_learn_finds(l2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(300, spread=4.0)
    head = ProbeHead(8, 4)
    normalised = set_statistics(head, features)
    monkeypatch.setattr(
        "perceptual_mae.evaluation.representation.probe_head.LOGITS_AT_ONCE", 4 * 70
    )  # several parts, one cut off
    fit_lbfgs(head.copies()[0], normalised, labels, l2=l2, iterations=500)
    reference = LogisticRegression(C=1 / (len(labels) * l2), tol=1e-8, max_iter=2000)
    reference.fit(normalised.double().numpy(), labels.numpy())
    weights, bias = (torch.from_numpy(value).float() for value in (reference.coef_, reference.intercept_))
    linear = head.copies()[0]
    torch.testing.assert_close(linear.weight.data, weights, rtol=5e-3, atol=2e-3)
    torch.testing.assert_close(linear.bias.data - linear.bias.data.mean(), bias - bias.mean(), rtol=5e-3, atol=2e-3)


def test_what_is_tried_is_scored_on_the_held_out_part_and_the_best_is_chosen() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(240, 60, generator=generator)  # mostly noise: weak penalties learn the images by heart
    labels = (features[:, 0] + 0.5 * torch.randn(240, generator=generator) > 0).long()
    fitted = fit_probe(features, labels, candidates=(1e-6, 0.3), held_out=0.25, seed=1)
    assert fitted.chosen == 0.3
    assert fitted.tried[0.3] == max(fitted.tried.values()) > fitted.tried[1e-6]
    held = torch.randperm(240, generator=stream("probe held out", 1))[:60]
    assert accuracies(fitted.head, features[held], labels[held])[0][0] == fitted.tried[0.3]


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_useless_learning_rate_is_not_chosen(optimizer: str) -> None:
    features, labels = clusters(300, spread=2.0)
    fitted = fit_probe(features, labels, optimizer=optimizer, candidates=(0.0, 6.4), epochs=30, batch_size=32)
    assert fitted.chosen == 6.4
    assert len(fitted.head.copies()) == 1
    assert fitted.tried[6.4] > fitted.tried[0.0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_images_that_choose_never_train(optimizer: str) -> None:
    features, labels = clusters(100, spread=2.0)
    held = torch.randperm(100, generator=stream("probe held out", 0))[:10]
    other, changed = features.clone(), labels.clone()
    other[held], changed[held] = 0.0, 0
    options = {"optimizer": optimizer, "candidates": (0.01,), "epochs": 2, "batch_size": 16, "num_classes": 4}
    one, two = (fit_probe(*data, **options).head for data in ((features, labels), (other, changed)))
    assert torch.equal(one.copies()[0].weight, two.copies()[0].weight)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_test_images_enter_after_everything_is_chosen(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(150, spread=3.0)
    test_features, test_labels = clusters(77, spread=3.0, seed=1)
    looked_at: list[int] = []

    def watched(head: ProbeHead, features: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
        looked_at.append(len(features))
        return accuracies(head, features, labels)

    monkeypatch.setattr(probe, "accuracies", watched)
    options = {"optimizer": optimizer, "epochs": 2, "batch_size": 32}
    result = linear_probe(features, labels, test_features, test_labels, **options)
    assert looked_at[-1] == 77
    assert set(looked_at[:-1]) == {15}
    other = linear_probe(features, labels, test_features.flip(0) * 9, test_labels.roll(1), **options)
    assert other.probe.chosen == result.probe.chosen
    assert torch.equal(other.probe.head.copies()[0].weight, result.probe.head.copies()[0].weight)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_seed_gives_the_same_probe_again_and_another_seed_another(optimizer: str) -> None:
    features, labels = clusters(150, spread=3.0)
    heads = [
        fit_probe(features, labels, optimizer=optimizer, epochs=2, batch_size=32, seed=seed).head.copies()[0].weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_heads_trained_side_by_side_are_those_trained_alone(optimizer: str) -> None:
    features, labels = clusters(128, spread=2.0)
    options = {"optimizer": optimizer, "epochs": 3, "batch_size": 32, "seed": 4}
    together = ProbeHead(8, 4, copies=2)
    fit_in_batches(together, features, labels, rates=(0.01, 0.3), **options)
    for place, rate in enumerate((0.01, 0.3)):
        alone = ProbeHead(8, 4)
        fit_in_batches(alone, features, labels, rates=(rate,), **options)
        torch.testing.assert_close(together.copies()[place].weight, alone.copies()[0].weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "labels"), [(2, 2), (10, 9)])
def test_too_little_is_refused(count: int, labels: int) -> None:
    with pytest.raises(ValueError, match=f"{count} features with {labels} labels"):
        fit_probe(torch.randn(count, 3), torch.zeros(labels, dtype=torch.int64))


def test_a_class_without_training_images_is_only_never_predicted() -> None:
    features, labels = clusters(100, spread=0.1, classes=3)
    result = linear_probe(features, labels, features, labels.clone().fill_(9), num_classes=10)
    assert result.accuracy == 0.0
    assert result.probe.head.copies()[0].out_features == 10


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_image_is_scored_the_same_whatever_other_images_are_scored_with_it(optimizer: str) -> None:
    features, labels = clusters(300, spread=3.0)
    head = fit_probe(features, labels, optimizer=optimizer, epochs=3, batch_size=32).head.train()
    test, test_labels = clusters(40, spread=3.0, seed=1)
    company = 1000 + 50 * test  # of another distribution
    alone = [accuracies(head, test[i : i + 1], test_labels[i : i + 1]) for i in range(40)]
    (correct,), (loss,) = accuracies(head.train(), test, test_labels)
    assert correct == pytest.approx(sum(accuracy for (accuracy,), _ in alone) / 40)
    assert loss == pytest.approx(sum(entropy for _, (entropy,) in alone) / 40, rel=1e-5)
    wrong = (head.eval()(company)[0].argmax(1) + 1) % 4
    (together,), _ = accuracies(head.train(), torch.cat([test, company]), torch.cat([test_labels, wrong]))
    assert 2 * together == pytest.approx(correct)


@pytest.mark.parametrize(
    ("losses", "best"), [([3.0, 1.0, 2.0], 1), ([2.0, 2.0, 2.0], 0), ([2.0, 1.0, 1.0], 1)], ids=str
)
@pytest.mark.parametrize("optimizer", ["lbfgs", "sgd"])
def test_of_equal_accuracies_the_smaller_loss_is_chosen_and_of_equal_losses_the_first(
    optimizer: str, losses: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = iter(losses)

    def tied(head: ProbeHead, features: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
        copies = len(head.copies())
        return [0.5] * copies, [next(one_by_one) for _ in range(copies)]

    monkeypatch.setattr(probe, "accuracies", tied)
    candidates = (1e-1, 1e-2, 1e-3)  # strongest penalty first, the order in which they are tried
    fitted = fit_probe(*clusters(60, spread=1.0), optimizer=optimizer, candidates=candidates, epochs=1, batch_size=8)
    assert fitted.chosen == candidates[best]


@pytest.mark.parametrize("kind", ["batches", "kth"])
def test_batches_are_ordered_anew_each_epoch_and_alike_for_a_seed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.arange(24.0).view(24, 1).repeat(1, 3)
    labels = torch.arange(24) % 2
    rows: list[list[float]] = []

    def record(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        rows.append(inputs[0][:, 0].tolist())

    def train(seed: int) -> list[list[float]]:
        rows.clear()
        if kind == "batches":
            head = ProbeHead(3, 2)
            head.register_forward_pre_hook(record)
            fit_in_batches(head, features, labels, optimizer="sgd", rates=[0.1], epochs=3, batch_size=8, seed=seed)
        else:

            def build(width: int, num_classes: int) -> torch.nn.Module:
                network = linear_head(width, num_classes)
                network.register_forward_pre_hook(record)
                return network

            monkeypatch.setitem(HEADS, "linear", build)
            train_head(features, labels, num_classes=2, head="linear", epochs=3, batch_size=8, seed=seed)
        return [[row for batch in rows[3 * epoch : 3 * epoch + 3] for row in batch] for epoch in range(3)]

    first, again, other = train(0), train(0), train(1)
    assert all(sorted(epoch) == features[:, 0].tolist() for epoch in first)
    assert first[0] != first[1] != first[2] != first[0]
    assert first == again != other
