"""The network that is fine-tuned: what it reads, what it starts from, how it is kept."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.layers import drop_path
from torch import Tensor

from conftest import debug_config, generator_of
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.finetuning.classifier import (
    Classifier,
    Pool,
    fresh_encoder,
    open_classifier,
    save_classifier,
)
from perceptual_mae.generator.encoder import Encoder

FACTS = {"transform": {"image_size": [32, 32], "resize": 40}}


def encoder() -> Encoder:
    return generator_of(debug_config("mse")).encoder


def images(number: int = 3) -> Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def excited(pool: Pool) -> Classifier:
    """A classifier whose head says something."""
    classifier = Classifier(encoder(), 7, pool=pool)
    torch.nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(1))
    return classifier.eval()


def test_the_mean_is_of_patches_of_the_last_block_under_a_norm_of_its_own() -> None:
    classifier, plain = excited("mean"), encoder()
    tokens = plain.encode(images(), taps=[2])[1][2]
    by_hand = F.layer_norm(tokens[:, 1:].mean(1), (32,), eps=1e-6) @ classifier.head.weight.T
    torch.testing.assert_close(classifier(images()), by_hand)


def test_the_class_token_is_read_after_the_encoders_own_norm() -> None:
    classifier = excited("class_token")
    torch.testing.assert_close(classifier(images()), encoder()(images())[:, 0] @ classifier.head.weight.T)


def test_the_head_starts_almost_at_zero_and_by_its_seed() -> None:
    weights = [Classifier(encoder(), 1000, seed=seed).head.weight for seed in (0, 0, 1)]
    assert float(weights[0].detach().std()) == pytest.approx(2e-5, rel=0.05)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_open_paths_change_nothing_and_closed_ones_leave_the_embeddings() -> None:
    plain = encoder().eval()
    torch.testing.assert_close(plain(images(), torch.ones(3, 2, 2)), plain(images()))
    paths = torch.ones(3, 2, 2)
    paths[1] = 0
    closed = plain(images(), paths)
    torch.testing.assert_close(closed[[0, 2]], plain(images())[[0, 2]])
    plain.blocks = torch.nn.ModuleList()
    torch.testing.assert_close(closed[1], plain(images())[1])


def test_a_path_does_to_a_block_what_timm_does() -> None:
    block = encoder().blocks[0]
    tokens = torch.rand(64, 17, 32, generator=torch.Generator().manual_seed(2))
    keep = 0.7
    torch.manual_seed(3)
    inner = tokens + drop_path(block.attn(block.norm1(tokens)), 1 - keep, training=True)
    expected = inner + drop_path(block.mlp(block.norm2(inner)), 1 - keep, training=True)
    torch.manual_seed(3)  # timm's own draws, one a branch
    paths = torch.stack([torch.empty(64, 1, 1).bernoulli_(keep).view(64) for _ in range(2)], dim=1) / keep
    assert 0 < int((paths == 0).sum()) < 128
    torch.testing.assert_close(block(tokens, paths), expected)


@pytest.mark.parametrize("pool", ["mean", "class_token"])
def test_every_weight_of_an_encoder_with_all_options_is_fine_tuned_and_kept(pool: Pool, tmp_path: Path) -> None:
    options = {"layer_scale": "0.1", "positions": "learned", "relative_positions": "true", "qkv_bias": "false"}
    options |= {"encoder_mask_tokens": "true", "drop_path": "0.3"}
    config = debug_config("mse", *(f"generator.{name}={value}" for name, value in options.items()))
    classifier = Classifier(generator_of(config).encoder, 7, pool=pool)
    torch.nn.init.normal_(classifier.head.weight)
    classifier(images(), torch.ones(3, 2, 2)).square().sum().backward()
    assert [name for name, value in classifier.named_parameters() if value.grad is None or not value.grad.any()] == []
    save_classifier(tmp_path, classifier, config, tuple("abcdefg"), FACTS)
    assert torch.equal(open_classifier(tmp_path)(images()), classifier(images()))


def test_a_fresh_encoder_is_what_pre_training_from_that_seed_starts_at() -> None:
    config = debug_config("mse", "training.seed=5")
    first = generator_of(config).encoder.state_dict()
    again, other = fresh_encoder(debug_config("mse"), 5).state_dict(), fresh_encoder(config, 6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["cls_token"], other["cls_token"])


@pytest.mark.parametrize("pool", ["mean", "class_token"])
def test_a_saved_network_opens_as_it_was(pool: Pool, tmp_path: Path) -> None:
    classifier = excited(pool)
    save_classifier(tmp_path, classifier, debug_config("mse"), tuple("abcdefg"), FACTS)
    opened = open_classifier(tmp_path)
    assert torch.equal(opened(images()), classifier(images()))
    assert (opened.classes, opened.training) == (tuple("abcdefg"), False)
    assert (opened.transform.size, opened.transform.resize) == ((32, 32), 40)
    picture = opened.transform(torch.zeros(3, 80, 60, dtype=torch.uint8))
    assert opened(picture[None].float() / 255).shape == (1, 7)


def test_what_is_no_saved_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no fine-tuned network"):
        open_classifier(tmp_path)
    save_classifier(tmp_path, excited("mean"), debug_config("mse"), tuple("abcdefg"), FACTS)
    weights = load_file(tmp_path / "classifier.safetensors")
    del weights["encoder.blocks.1.mlp.fc2.bias"]
    save_file(weights, tmp_path / "classifier.safetensors")
    with pytest.raises(UserError, match=r"encoder\.blocks\.1\.mlp\.fc2\.bias"):
        open_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(FACTS)[:-3])
    with pytest.raises(UserError, match="holds no fine-tuned network"):
        open_classifier(tmp_path)
