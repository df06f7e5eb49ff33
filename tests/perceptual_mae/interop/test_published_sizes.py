"""Networks of every size from tiny to huge, by the names and shapes that each project writes; nothing takes memory."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from conftest import slow
from foreign_networks import MEAN, STD, MaeReference, vit_mae_of
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.sizes import SIZES
from perceptual_mae.interop import key_maps, pretrained, stated
from perceptual_mae.interop.reading import RawFile

NAMES_OF_TIMM = {
    "tiny": "vit_tiny_patch16_224",
    "small": "vit_small_patch16_224",
    "base": "vit_base_patch16_224",
    "large": "vit_large_patch16_224",
    "huge": "vit_huge_patch14_224",
}

every_size = pytest.mark.parametrize("size", [size if size == "tiny" else slow(size) for size in SIZES])


def sizes_of(size: str) -> dict[str, int]:
    named = SIZES[size]
    return {
        "image_size": 224,
        **{name: getattr(named, name) for name in ("patch_size", "width", "depth", "heads")},
        **{f"decoder_{name}": getattr(named, f"decoder_{name}") for name in ("width", "depth", "heads")},
    }


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@cache
def ours(size: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        state = MaskedAutoencoder((224, 224), 3, MEAN, STD, size=size).state_dict()  # type: ignore[arg-type]
    return {name: value for name, value in state.items() if name not in key_maps.OF_THE_DATA}


@cache
def facebookresearch(size: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return MaeReference(**sizes_of(size)).state_dict()


def names_of_4(size: str) -> dict[str, Tensor]:
    """What ViTMAEForPreTraining of transformers 4.x writes, name by name."""
    sizes = sizes_of(size)
    patches, values = 1 + (224 // sizes["patch_size"]) ** 2, 3 * sizes["patch_size"] ** 2
    state: dict[str, tuple[int, ...]] = {}

    def affine(name: str, outputs: int, *inputs: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = (outputs, *inputs), (outputs,)

    def layer(name: str, width: int) -> None:
        for part in ("query", "key", "value"):
            affine(f"{name}.attention.attention.{part}", width, width)
        affine(f"{name}.attention.output.dense", width, width)
        affine(f"{name}.intermediate.dense", 4 * width, width)
        affine(f"{name}.output.dense", width, 4 * width)
        affine(f"{name}.layernorm_before", width)
        affine(f"{name}.layernorm_after", width)

    width, decoder_width = sizes["width"], sizes["decoder_width"]
    state["vit.embeddings.cls_token"] = (1, 1, width)
    state["vit.embeddings.position_embeddings"] = (1, patches, width)
    affine("vit.embeddings.patch_embeddings.projection", width, 3, sizes["patch_size"], sizes["patch_size"])
    for number in range(sizes["depth"]):
        layer(f"vit.encoder.layer.{number}", width)
    affine("vit.layernorm", width)
    state["decoder.mask_token"] = (1, 1, decoder_width)
    state["decoder.decoder_pos_embed"] = (1, patches, decoder_width)
    affine("decoder.decoder_embed", decoder_width, width)
    for number in range(sizes["decoder_depth"]):
        layer(f"decoder.decoder_layers.{number}", decoder_width)
    affine("decoder.decoder_norm", decoder_width)
    affine("decoder.decoder_pred", values, decoder_width)
    return {name: torch.empty(shape, device="meta") for name, shape in state.items()}


@every_size
def test_names_and_shapes_of_facebookresearch_mae_are_those_of_our_size(size: str) -> None:
    theirs = facebookresearch(size)
    assert shapes(key_maps.from_mae(theirs)) == shapes(ours(size))
    assert shapes(key_maps.to_mae(ours(size))) == shapes(theirs)


@every_size
def test_names_and_shapes_of_timm_are_those_of_our_encoder(size: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(NAMES_OF_TIMM[size], num_classes=0).state_dict()
    encoder = key_maps.encoder_of(ours(size))
    assert shapes(key_maps.from_mae(theirs)) == shapes(encoder)
    assert shapes(key_maps.to_mae(encoder)) == shapes(theirs)


@every_size
def test_names_and_shapes_of_transformers_4_are_those_of_our_size(size: str) -> None:
    theirs = names_of_4(size)
    assert shapes(key_maps.from_transformers(theirs)) == shapes(ours(size))
    assert shapes(key_maps.to_transformers(ours(size))) == shapes(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_of_transformers_5_are_those_of_our_size(size: str) -> None:
    """Of the network in memory; where another version is installed it is that one's names that are read."""
    with torch.device("meta"):
        theirs = vit_mae_of(sizes_of(size)).state_dict()
    assert shapes(key_maps.from_transformers(theirs)) == shapes(ours(size))


OPTIONS = {"positions": "sincos", "qkv_bias": True, "layer_scale": None, "relative_positions": False, "mlp_ratio": 4.0}


@every_size
@pytest.mark.parametrize("write", [facebookresearch, names_of_4], ids=["facebookresearch/mae", "transformers"])
def test_a_file_of_every_size_is_recognised_with_its_options(
    write: Any, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, config = sizes_of(size), {"model_type": "vit_mae", "num_attention_heads": SIZES[size].heads}
    raw = RawFile(Path("x.safetensors"), write(size), config=config if write is names_of_4 else {})
    monkeypatch.setattr(pretrained, "read_raw", lambda path: raw)
    opened = pretrained.open_pretrained(raw.file)
    shown = {name: value for name, value in named.items() if not name.endswith(("heads", "image_size"))}
    assert opened.architecture == OPTIONS | shown
    assert opened.settings.image_size == (224, 224)
    assert opened.settings.heads == (named["heads"] if write is names_of_4 else None)
    assert stated.proposal("heads", opened.tensors) == f"--heads {named['heads']}"
