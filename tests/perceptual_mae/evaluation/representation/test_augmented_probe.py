"""Probes trained on augmented images: batches, rates, and what moves."""

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from conftest import debug_config, generator_of
from perceptual_mae.evaluation.labelled_data import LabelledData, open_labelled
from perceptual_mae.evaluation.representation import augmented_probe
from perceptual_mae.evaluation.representation.augmented_probe import RECIPES, mae_batch_size, score_heads, train_probe
from perceptual_mae.evaluation.representation.features import Features, encoder_features, fingerprint
from perceptual_mae.evaluation.representation.probe_head import ProbeHead


@pytest.fixture(scope="module")
def digits() -> LabelledData:
    return open_labelled(debug_config("mse", "data={kind: digits, image_size: 32}", "data.num_images=null"))


def brightness(images: Tensor) -> dict[str, Tensor]:
    return {"brightness": images.mean((2, 3))}


@pytest.mark.parametrize(
    ("num_images", "batch_size"), [(1_281_167, 16384), (10**8, 16384), (50_000, 512), (5_000, 64), (100, 16), (1, 16)]
)
def test_small_sets_get_as_many_steps_an_epoch_as_imagenet(num_images: int, batch_size: int) -> None:
    assert mae_batch_size(num_images) == batch_size


def test_peak_rates_are_the_published_ones() -> None:
    mae, paper = RECIPES["mae"], RECIPES["paper"]
    for batch_size in (16384, 4096, 1024):
        assert mae.peak_rate(batch_size, 1_281_167) == pytest.approx(0.1 * batch_size / 256)
    assert mae.peak_rate(512, 50_000) == mae.peak_rate(16384, 1_281_167) == 6.4
    assert paper.peak_rate(16, 50_000) == paper.peak_rate(1024, 50_000) == 1e-3
    optimizer = paper.optimizer([torch.zeros(1)])
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.9, 0.95), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", list(RECIPES))
def test_the_head_and_its_statistics_move_and_the_encoder_does_not(protocol: str, digits: LabelledData) -> None:
    encoder = generator_of(debug_config("mse")).encoder.eval()
    before, shapes = fingerprint(encoder), set[torch.Size]()
    encoder.blocks[0].register_forward_hook(lambda module, inputs, output: shapes.add(inputs[0].shape[1:]))
    heads = train_probe(
        encoder_features(encoder), digits, RECIPES[protocol], Accelerator(cpu=True), epochs=1, batch_size=64
    )
    assert fingerprint(encoder) == before
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert shapes == {(1 + 16, 32)}  # the class token and every patch
    fresh = ProbeHead(32, 10)
    for name in ("class", "mean"):
        assert not torch.equal(heads[name].copies()[0].weight, fresh.copies()[0].weight)
        assert not torch.equal(heads[name].norm.running_mean, fresh.norm.running_mean)
        assert not heads[name].training


@pytest.mark.slow
def test_the_warm_up_ends_at_the_peak_and_the_cosine_near_zero(
    digits: LabelledData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(augmented_probe, "_step", lambda head, optimizer, features, labels, rate: rates.append(rate))
    train_probe(brightness, digits, RECIPES["mae"], Accelerator(cpu=True), epochs=9, batch_size=256)
    assert len(rates) == 9 * 4  # 1,258 images: four whole batches an epoch
    assert rates[:5] == pytest.approx([0.0, 25.6, 51.2, 76.8, 102.4])  # one epoch of nine, up to 6.4 * 256 / 16
    assert max(rates) == rates[4]
    assert rates[-1] < 0.01 * rates[4]


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "at_once"), [(32, 32), (32, 256), (128, 64), (128, 32), (128, 512)])
def test_parts_and_cuts_of_a_batch_change_nothing(
    batch_size: int, at_once: int, digits: LabelledData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def note(head: ProbeHead, optimizer: object, features: Tensor, labels: Tensor, rate: float) -> None:
        seen.append((features, labels))

    monkeypatch.setattr(augmented_probe, "_step", note)
    options = {"epochs": 1, "batch_size": batch_size}
    monkeypatch.setattr(augmented_probe, "IMAGES_AT_ONCE", at_once)
    train_probe(brightness, digits, RECIPES["mae"], Accelerator(cpu=True), **options)
    ours = seen.copy()
    seen.clear()
    monkeypatch.setattr(augmented_probe, "IMAGES_AT_ONCE", batch_size)
    train_probe(brightness, digits, RECIPES["mae"], Accelerator(cpu=True), **options)
    assert {len(labels) for _, labels in ours} == {batch_size}
    assert 0.97 * len(seen) <= len(ours) <= len(seen)
    for (one, one_labels), (two, two_labels) in zip(ours, seen, strict=False):
        assert torch.equal(one, two)
        assert torch.equal(one_labels, two_labels)


@pytest.mark.slow
def test_a_seed_decides_order_augmentation_and_weights(digits: LabelledData) -> None:
    weights = [
        train_probe(brightness, digits, RECIPES["mae"], Accelerator(cpu=True), epochs=1, batch_size=128, seed=seed)[
            "brightness"
        ]
        .copies()[0]
        .weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_heads_are_scored_on_the_features_of_their_name() -> None:
    right, wrong = ProbeHead(2, 2), ProbeHead(2, 2)
    right.copies()[0].weight.data.copy_(torch.eye(2))
    wrong.copies()[0].weight.data.copy_(-torch.eye(2))
    features = Features({"a": torch.eye(2), "b": torch.eye(2)}, torch.tensor([0, 1]))
    assert score_heads({"a": right, "b": wrong}, features) == {"a": 1.0, "b": 0.0}
