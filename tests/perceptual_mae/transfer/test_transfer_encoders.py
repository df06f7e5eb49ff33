"""Trunks: the encoder of a run on other images, and timm's networks."""

from pathlib import Path

import pytest
import torch
from torch import nn

from perceptual_mae import UserError
from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.transfer.encoders import TimmTrunk, Trunk, adapt_encoder, layer_of, open_source
from perceptual_mae.transfer.taps import Taps


def tiny_encoder(**options: object) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(
        (32, 32), 3, (0.5,) * 3, (0.25,) * 3, **{"patch_size": 8, "width": 16, "depth": 4, "heads": 2, **options}
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    return encoder


@pytest.mark.parametrize("options", [{}, {"positions": "learned"}, {"relative_positions": True}, {"layer_scale": 0.5}])
def test_an_adapted_encoder_computes_what_the_encoder_computes_at_that_size(options: dict[str, object]) -> None:
    encoder = tiny_encoder(**options).eval()
    images = torch.rand(2, 3, 48, 24, generator=torch.Generator().manual_seed(1))
    adapted = adapt_encoder(encoder, (48, 24), learn_positions=True, layer_scale=1.0, relative_positions=True)
    assert isinstance(adapted.pos_embed, nn.Parameter)
    torch.testing.assert_close(adapted(images), encoder(images), rtol=1e-5, atol=1e-6)


def test_the_maps_of_a_trunk_are_the_outputs_of_its_blocks() -> None:
    encoder = tiny_encoder()
    images = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    expected = encoder.intermediate(images, (1, 2, 2, 4))
    trunk = Trunk(encoder, Taps((1, 2, 2, 4), "standard"))
    maps = trunk(images)
    assert [tuple(each.shape) for each in maps] == [(2, 16, 4, 2)] * 4
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))
    assert (trunk.channels, trunk.strides, trunk.depth) == ((16,) * 4, (8,) * 4, 4)


def test_every_parameter_of_a_trunk_gets_a_gradient() -> None:
    trunk = Trunk(tiny_encoder(positions="learned"), Taps((1, 2, 3, 4), "standard"))
    sum(each.square().mean() for each in trunk(torch.rand(1, 3, 32, 32))).backward()
    assert [name for name, each in trunk.named_parameters() if each.grad is None] == []
    partly = Trunk(tiny_encoder(), Taps((1, 1, 2, 3), "chosen"))
    assert not any(each.requires_grad for each in partly.encoder.blocks[3].parameters())


def test_layers_count_from_the_embeddings_up() -> None:
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.11.mlp.fc1.bias"]
    assert [layer_of(f"encoder.{name}", 12) for name in [*names, "norm.weight"]] == [0, 0, 0, 1, 12, 13]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timms_networks_give_four_maps(name: str) -> None:
    trunk = TimmTrunk(name, (224, 224))
    maps = trunk(torch.rand(1, 3, 224, 224))
    expected = [
        (1, channels, 224 // stride, 224 // stride)
        for channels, stride in zip(trunk.channels, trunk.strides, strict=True)
    ]
    assert [tuple(each.shape) for each in maps] == expected
    assert (trunk.depth, trunk.taps.source) == ((12, "standard") if name.startswith("vit") else (0, "stages"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_timms_weights_come_from_a_file_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    whole = timm.create_model(name, pretrained=False, num_classes=0)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    source = open_source(f"timm:{name}:{tmp_path / 'whole.safetensors'}")
    trunk = source.timm_trunk((224, 224), 0)
    images = torch.rand(1, 3, 224, 224)
    expected = whole.eval().forward_intermediates((images - trunk.mean) / trunk.std, intermediates_only=True)
    torch.testing.assert_close(trunk.eval()(images)[-1], expected[-1], rtol=1e-4, atol=1e-5)
    assert source.describe()["encoder_tensors"]["loaded"] > 50
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="are those of another network"):
        open_source(f"timm:{name}:{tmp_path / 'other.safetensors'}").timm_trunk((224, 224), 0)


@pytest.mark.slow  # importing timm takes seconds
def test_what_is_no_network_of_timms_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^timm:resnet19: timm has no network 'resnet19' \(did you mean"):
        open_source("timm:resnet19")
    with pytest.raises(UserError, match="is no file; give the state dict of resnet18"):
        open_source(f"timm:resnet18:{tmp_path / 'none.pth'}")


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(UserError, match="--from-scratch takes none"):
        open_source(str(tmp_path), from_scratch=True, ema=True)
