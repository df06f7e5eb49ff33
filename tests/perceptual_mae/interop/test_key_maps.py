"""Names of other projects become ours and theirs again: equal outputs in float64, values bit for bit."""

from collections.abc import Mapping

import pytest
import timm
import torch
from torch import Tensor

from foreign_networks import BASE, MEAN, STD, TINY, MaeReference, generator_like, images_of, vit_mae_of
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder, count_parameters
from perceptual_mae.generator.vit import sincos_positions
from perceptual_mae.images import patchify
from perceptual_mae.interop import key_maps
from perceptual_mae.run.checkpoint import state_dict_mismatch

SIZES = [pytest.param(TINY, id="tiny"), pytest.param(BASE, id="ViT-B/16", marks=pytest.mark.slow)]


def learnt(generator: MaskedAutoencoder) -> dict[str, Tensor]:
    return {name: value for name, value in generator.state_dict().items() if name not in key_maps.OF_THE_DATA}


def identical(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def load(generator: MaskedAutoencoder, tensors: Mapping[str, Tensor]) -> MaskedAutoencoder:
    """Load strictly, statistics of the images apart."""
    state = generator.state_dict()
    whole = {**tensors, **{name: state[name] for name in key_maps.OF_THE_DATA}}
    assert state_dict_mismatch(generator, whole) is None
    generator.load_state_dict(whole)
    return generator.double()


@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_facebookresearch_mae_and_ours_compute_the_same_both_ways(sizes: dict[str, int]) -> None:
    theirs, images = MaeReference(**sizes).double().eval(), images_of(sizes)
    ours = load(generator_like(sizes).double(), key_maps.from_mae(theirs.state_dict()))
    noise = torch.rand(len(images), ours.grid[0] * ours.grid[1], generator=torch.Generator().manual_seed(2))
    tokens, prediction, mask = theirs(ours.encoder.normalise(images), noise)
    reconstruction = ours(images, mask.bool())
    assert (patchify(reconstruction.prediction[0], ours.patch_size) - prediction).abs().max() < 1e-12 * max(
        1.0, float(prediction.abs().max())
    )
    back = MaeReference(**sizes).double().eval()
    back.load_state_dict(key_maps.to_mae(learnt(ours)))
    assert torch.equal(back(ours.encoder.normalise(images), noise)[0], tokens)


def test_a_way_to_each_form_and_back_is_bit_identical() -> None:
    state = learnt(generator_like(TINY))
    assert identical(key_maps.from_mae(key_maps.to_mae(state)), state)
    assert identical(key_maps.from_transformers(key_maps.to_transformers(state)), state)
    encoder = key_maps.encoder_of(state)
    assert identical(key_maps.from_transformers(key_maps.to_transformers(encoder, prefix="")), encoder)
    assert identical(key_maps.from_mae(key_maps.to_mae(encoder)), encoder)


def in_memory_of_5(name: str) -> str:
    """A name of transformers 4.x on disk as 5.x has it in memory."""
    for old, new in (
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ):
        name = name.replace(old, new)
    return name


OTHER_NAMES = {
    "5.x on disk": lambda name: name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."),
    "5.x in memory": in_memory_of_5,
    "layers in the decoder": lambda name: in_memory_of_5(name).replace("decoder.decoder_layers.", "decoder.layers."),
}


@pytest.mark.parametrize("names", OTHER_NAMES)
def test_every_spelling_of_transformers_is_read(names: str) -> None:
    state = learnt(generator_like(TINY))
    other = {OTHER_NAMES[names](name): value for name, value in key_maps.to_transformers(state).items()}
    assert other.keys() != key_maps.to_transformers(state).keys()
    assert identical(key_maps.from_transformers(other), state)


def test_the_hubs_names_are_those_of_the_published_models() -> None:
    names = key_maps.to_transformers(learnt(generator_like(TINY))).keys()
    assert {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.encoder.layer.0.attention.attention.query.weight",
        "vit.encoder.layer.1.attention.output.dense.bias",
        "vit.encoder.layer.1.intermediate.dense.weight",
        "vit.encoder.layer.1.layernorm_after.weight",
        "vit.layernorm.weight",
        "decoder.decoder_embed.weight",
        "decoder.mask_token",
        "decoder.decoder_pos_embed",
        "decoder.decoder_layers.0.output.dense.weight",
        "decoder.decoder_norm.bias",
        "decoder.decoder_pred.weight",
    } <= names


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("norm_pix", [False, True])
@torch.no_grad()
@pytest.mark.slow
def test_transformers_and_ours_compute_the_same_both_ways(sizes: dict[str, int], norm_pix: bool) -> None:
    ours, images = generator_like(sizes, norm_pix=norm_pix).double(), images_of(sizes)
    theirs = vit_mae_of(sizes, layer_norm_eps=1e-6, norm_pix_loss=norm_pix).double().eval()
    in_memory = {in_memory_of_5(name): value for name, value in key_maps.to_transformers(learnt(ours)).items()}
    in_4 = key_maps.to_transformers(learnt(ours))
    theirs.load_state_dict(in_memory if "vit.layernorm.weight" in in_memory and _is_5(theirs) else in_4)
    output = theirs(ours.encoder.normalise(images))
    prediction = ours(images, output.mask.bool()).prediction[0]
    assert (patchify(prediction, ours.patch_size) - output.logits).abs().max() < 1e-12 * max(
        1.0, float(prediction.abs().max())
    )
    assert identical(key_maps.from_transformers(theirs.state_dict()), learnt(ours))


def _is_5(network: torch.nn.Module) -> bool:
    return any(name.startswith("vit.layers.") for name in network.state_dict())


@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_timm_and_ours_compute_the_same_both_ways(sizes: dict[str, int]) -> None:
    ours, images = generator_like(sizes).double(), images_of(sizes)
    theirs = timm.models.VisionTransformer(
        img_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["width"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        num_classes=0,
    )
    encoder = key_maps.encoder_of(learnt(ours))
    theirs.load_state_dict(key_maps.to_mae(encoder))
    tokens = theirs.double().eval().forward_features(ours.encoder.normalise(images))
    assert (ours.encoder(images) - tokens).abs().max() < 1e-12 * max(1.0, float(tokens.abs().max()))
    maps = theirs.forward_intermediates(ours.encoder.normalise(images), indices=[0, 1], intermediates_only=True)
    for one, other in zip(ours.encoder.intermediate(images, (1, 2)), maps, strict=True):
        assert (one - other).abs().max() < 1e-12 * max(1.0, float(other.abs().max()))
    assert identical(key_maps.from_mae(theirs.state_dict()), encoder)


def test_the_published_position_codes_are_met() -> None:
    """Goldens of METHOD B1, of facebookresearch/mae's util/pos_embed.py."""
    small = sincos_positions((2, 2), 8)[0, 1:]
    expected = [[0, 0, 1, 1, 0, 0, 1, 1], [0.841471, 0.01, 0.540302, 0.99995, 0, 0, 1, 1]]
    torch.testing.assert_close(small[:2], torch.tensor(expected), atol=1e-6, rtol=0)
    codes = sincos_positions((14, 14), 768)[0, 1:].double()
    assert float(codes.sum()) == pytest.approx(69594.494, abs=1e-2)
    assert float(codes.abs().mean()) == pytest.approx(0.558822, abs=1e-6)


PUBLISHED = {
    "base": (111_655_680, 111_907_840),
    "large": (329_239_296, 329_541_888),
    "huge": (656_613_964, 657_074_508),
}


@pytest.mark.parametrize("size", ["small", *PUBLISHED])
def test_every_size_goes_both_ways_by_its_keys(size: str) -> None:
    side = 224
    with torch.device("meta"):
        generator = MaskedAutoencoder((side, side), 3, MEAN, STD, size=size)  # type: ignore[arg-type]
    state = learnt(generator)
    for back in (
        key_maps.from_mae(key_maps.to_mae(state)),
        key_maps.from_transformers(key_maps.to_transformers(state)),
    ):
        assert {name: value.shape for name, value in back.items()} == {
            name: value.shape for name, value in state.items()
        }
    if size in PUBLISHED:
        assert count_parameters(generator) == PUBLISHED[size]
