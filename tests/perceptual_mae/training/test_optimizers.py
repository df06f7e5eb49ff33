"""Layer decay: who is in which group, and whether the rates arrive."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from perceptual_mae.evaluation.finetuning.classifier import Classifier, Pool
from perceptual_mae.evaluation.finetuning.training import finetuning_optimizer
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.schedules import set_learning_rate
from perceptual_mae.training.optimizers import generator_optimizer

RATE = 1e-3
EVERYTHING: dict[str, Any] = {"layer_scale": 0.1, "positions": "learned", "relative_positions": True}
NO_WEIGHT_DECAY = ("cls_token", "mask_token", "pos_embed", "relative_position_bias_table")


def classifier(depth: int, pool: Pool = "mean", **options: Any) -> Classifier:
    encoder = Encoder((16, 16), 3, (0.5,) * 3, (0.5,) * 3, patch_size=8, width=8, depth=depth, heads=2, **options)
    return Classifier(encoder, 4, pool=pool)


def layer_of(name: str) -> str:
    if name.startswith(("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed")):
        return "embeddings"
    return name.split(".")[2] if name.startswith("encoder.blocks.") else "top"


def steps(network: nn.Module, **options: float) -> dict[str, float]:
    """How far one step at RATE moves each parameter, all gradients being 1: Adam's first step is the rate itself."""
    optimizer = finetuning_optimizer(network, betas=(0.9, 0.999), **{"weight_decay": 0.0, **options})
    set_learning_rate(optimizer, RATE)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: (before[name] - parameter).abs() for name, parameter in network.named_parameters()}
    assert all(torch.allclose(move, move.flatten()[0], rtol=1e-2) for move in moved.values())
    return {name: float(move.detach().mean()) for name, move in moved.items()}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("pool", ["mean", "class_token"])
def test_each_layer_takes_steps_of_its_own_length(pool: Pool, options: dict[str, Any]) -> None:
    by_hand = {"embeddings": 0.125, "0": 0.25, "1": 0.5, "top": 1.0}
    for name, step in steps(classifier(2, pool, **options), layer_decay=0.5).items():
        assert step == pytest.approx(RATE * by_hand[layer_of(name)], rel=1e-2), name


def test_twelve_blocks_have_the_published_scales() -> None:
    found = {layer_of(name): step / RATE for name, step in steps(classifier(12), layer_decay=0.65).items()}
    assert found["embeddings"] == pytest.approx(0.003697, rel=1e-2)
    assert found["11"] == pytest.approx(0.65, rel=1e-2)
    assert found["0"] == pytest.approx(0.65**12, rel=1e-2)
    assert found["top"] == pytest.approx(1.0, rel=1e-2)


def test_without_layer_decay_all_steps_are_alike() -> None:
    assert list(steps(classifier(2), layer_decay=1.0).values()) == pytest.approx([RATE] * 31, rel=1e-2)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("pool", ["mean", "class_token"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(pool: Pool, options: dict[str, Any]) -> None:
    network = classifier(3, pool, **options)
    optimizer = finetuning_optimizer(network, betas=(0.9, 0.999), weight_decay=0.05, layer_decay=0.75)
    assert_only_matrices_decay(network, optimizer)


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"encoder_mask_tokens": True}], ids=["plain", "all", "tokens"])
def test_pre_training_decays_matrices_alone(options: dict[str, Any]) -> None:
    sizes = {"width": 8, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 2, "decoder_heads": 2}
    network = MaskedAutoencoder((16, 16), 3, (0.5,) * 3, (0.5,) * 3, patch_size=8, **sizes, **options)
    assert_only_matrices_decay(network, generator_optimizer(network, betas=(0.9, 0.95), weight_decay=0.05))


def assert_only_matrices_decay(network: nn.Module, optimizer: Optimizer) -> None:
    owner = [
        (id(parameter), group["weight_decay"]) for group in optimizer.param_groups for parameter in group["params"]
    ]
    assert sorted(key for key, _ in owner) == sorted(id(parameter) for parameter in network.parameters())
    decays = dict(owner)
    for name, parameter in network.named_parameters():
        spared = parameter.ndim == 1 or name.rpartition(".")[2] in NO_WEIGHT_DECAY
        assert decays[id(parameter)] == (0.0 if spared else 0.05), name


def test_groups_without_a_scale_get_the_rate_itself() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    set_learning_rate(optimizer, RATE)
    assert optimizer.param_groups[0]["lr"] == RATE
