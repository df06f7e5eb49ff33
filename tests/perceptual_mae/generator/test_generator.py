"""The generator: what it promises, at every option, and that it cannot see what is hidden."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from conftest import debug_config, generator_of
from perceptual_mae.config.from_signature import first_parameter
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder, count_parameters
from perceptual_mae.images import patchify, resolutions
from perceptual_mae.masking import MASKINGS, draw_masks, num_hidden, random
from perceptual_mae.seeding import stream

TINY = {"width": 32, "depth": 4, "heads": 4, "decoder_width": 16, "decoder_depth": 4, "decoder_heads": 2}
BLOCKS = {
    "layer_scale": {"layer_scale": 0.1},
    "no_qkv_bias": {"qkv_bias": False},
    "drop_path": {"drop_path": 0.5},
    "learned": {"positions": "learned"},
    "relative": {"relative_positions": True},
    "mask_tokens": {"encoder_mask_tokens": True},
}
EVERYTHING = {name: value for options in BLOCKS.values() for name, value in options.items()}
OPTIONS = {
    **BLOCKS,
    "everything": EVERYTHING,
    "everything_msg_mae": {**EVERYTHING, "skips": True, "rgb_heads": True},
    "mae": {},
    "heads": {"rgb_heads": True},
    "skips": {"skips": True},
    "msg_mae": {"skips": True, "rgb_heads": True},
    "official": {"skips": True, "rgb_heads": True, "skip_projection": "shared", "head_form": "full"},
    "even": {"skips": True, "rgb_heads": True, "skip_map": "even"},
    "norm_pix": {"norm_pix": True},
    "cross": {"decoder_attention": "cross"},
    "cross_msg_mae": {"decoder_attention": "cross", "skips": True, "rgb_heads": True},
    "cross_everything": {**EVERYTHING, "encoder_mask_tokens": False, "decoder_attention": "cross"},
    "constant_class_token": {"decoder_class_token": "constant"},
    "cross_constant_class_token": {"decoder_class_token": "constant", "decoder_attention": "cross", "rgb_heads": True},
    "narrow_decoder_mlp": {"decoder_mlp_ratio": 2.0},
    "cross_official": {
        "decoder_attention": "cross",
        "skips": True,
        "rgb_heads": True,
        "skip_projection": "shared",
        "head_form": "full",
    },
}


def build(size=(32, 32), channels=3, patch_size=8, **options):
    torch.manual_seed(0)
    mean, std = [0.5 - 0.02 * channel for channel in range(channels)], [0.25 + 0.01 * c for c in range(channels)]
    return MaskedAutoencoder(size, channels, mean, std, patch_size=patch_size, **{**TINY, **options})


def batch_for(generator, batch=2, ratio=0.75):
    rows, columns = generator.grid
    images = torch.rand(batch, generator.channels, *generator.image_size)
    hidden = rows * columns if ratio == 1 else num_hidden(rows * columns, ratio)
    return images, draw_masks(random, (rows, columns), hidden, [torch.Generator().manual_seed(i) for i in range(batch)])


def check_shapes(generator, batch=2, ratio=0.75):
    images, mask = batch_for(generator, batch, ratio)
    fake = generator(images, mask)
    expected = [(batch, generator.channels, *size) for size in generator.resolutions]
    assert [tuple(level.shape) for level in fake.pyramid] == expected
    assert [tuple(level.shape) for level in fake.prediction] == expected
    assert all(level.dtype == torch.float32 for level in (*fake.pyramid, *fake.prediction))
    assert all(level.isfinite().all() for level in fake.pyramid)
    assert torch.equal(fake.mask, mask)
    assert fake.latent.shape == (batch, 1 + mask.shape[1], generator.decoder.blocks[0].norm1.weight.numel())
    assert fake.composite(images).shape == images.shape


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_any_batch_size_and_ratio_give_the_declared_pyramid(options):
    """Batches of one to five images; from nothing hidden to everything."""
    generator = build(**options)
    assert generator.resolutions == (resolutions((32, 32)) if options.get("rgb_heads") else ((32, 32),))
    for batch in (1, 2, 3, 5):
        check_shapes(generator, batch)
    for ratio in (0.0, 0.5, 1):
        check_shapes(generator, ratio=ratio)


@pytest.mark.parametrize(
    ("size", "patch_size", "channels"),
    [((96, 64), 8, 3), ((64, 96), 16, 1), ((32, 32), 2, 5), ((56, 112), 14, 3), ((48, 48), 6, 1)],
)
def test_any_shape_patch_and_channel_count_works(size, patch_size, channels):
    check_shapes(build(size, channels, patch_size, **OPTIONS["msg_mae"]))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_parameter_gets_a_gradient(options):
    generator = build(**options)
    fake = generator(*batch_for(generator))
    sum(level.square().mean() for level in fake.pyramid).backward()
    dead = [name for name, parameter in generator.named_parameters() if parameter.grad is None]
    assert dead == []
    silent = [name for name, parameter in generator.named_parameters() if not parameter.grad.any()]
    assert silent == []


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_class_and_mask_tokens_get_gradients_from_the_full_image_alone(options):
    generator = build(**options)
    generator(*batch_for(generator)).prediction[0].square().mean().backward()
    assert generator.encoder.cls_token.grad.abs().max() > 0
    token = generator.mask_token if options.get("encoder_mask_tokens") else generator.decoder.mask_token
    assert token.grad.abs().max() > 0


def test_every_level_of_the_pyramid_reaches_its_own_head_only():
    generator = build(**OPTIONS["msg_mae"])
    for level in range(1, len(generator.resolutions)):
        generator.zero_grad()
        generator(*batch_for(generator)).pyramid[level].square().mean().backward()
        alive = [head.predict.weight.grad is not None for head in generator.decoder.heads]
        assert alive == [other == level for other in range(1, len(generator.resolutions))]
        assert generator.decoder.pred.weight.grad is None


@pytest.mark.parametrize("options", ["msg_mae", "everything_msg_mae"])
def test_nothing_hidden_still_gives_the_mask_token_a_gradient_of_zero(options):
    generator = build(**OPTIONS[options])
    generator(*batch_for(generator, ratio=0.0)).pyramid[0].sum().backward()
    (token,) = (value for name, value in generator.named_parameters() if name.endswith("mask_token"))
    assert token.grad.abs().max() == 0, "not None: distributed training waits for every gradient"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_hidden_pixels_cannot_influence_the_prediction(options):
    generator = build(patch_size=4, **options).eval()
    images, mask = batch_for(generator)
    fake = generator(images, mask)
    hidden = fake.composite(torch.zeros_like(images)) != 0
    changed = torch.where(hidden, torch.rand_like(images), images)
    assert (changed != images).any()
    for before, after in zip(fake.prediction, generator(changed, mask).prediction, strict=True):
        assert torch.equal(before, after)


def test_visible_pixels_do_influence_the_prediction():
    generator = build(patch_size=4, **OPTIONS["msg_mae"])
    images, mask = batch_for(generator)
    for before, after in zip(generator(images, mask).prediction, generator(1 - images, mask).prediction, strict=True):
        assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("kind", MASKINGS)
def test_visible_tokens_return_to_their_places(kind):
    generator = build(patch_size=4)
    shares = torch.rand(3, 64) if first_parameter(MASKINGS[kind]) == "attention" else None
    mask = draw_masks(MASKINGS[kind], generator.grid, 48, [stream("mask", index) for index in range(3)], shares)
    visible = (~mask).nonzero()[:, 1].view(3, -1)
    tokens = torch.randn(3, 1 + visible.shape[1], 16)
    placed = generator.decoder.scatter_visible(tokens, visible) - generator.decoder.pos_embed
    torch.testing.assert_close(placed[:, 0], tokens[:, 0])
    for image in range(3):
        expected = generator.decoder.mask_token[0, 0].repeat(64, 1)
        expected[~mask[image]] = tokens[image, 1:]
        torch.testing.assert_close(placed[image, 1:], expected)


def test_images_do_not_mix_within_a_batch():
    generator = build(**OPTIONS["msg_mae"])
    images, mask = batch_for(generator, batch=3)
    together, alone = generator(images, mask), generator(images[1:2], mask[1:2])
    for one, other in zip(together.pyramid, alone.pyramid, strict=True):
        torch.testing.assert_close(one[1:2], other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", ["msg_mae", *BLOCKS, "everything"])
def test_encoder_sees_every_patch_of_any_image_size(options):
    generator = build((32, 32), patch_size=8, **OPTIONS[options])
    assert generator.encoder(torch.rand(2, 3, 32, 32)).shape == (2, 17, 32)
    assert generator.encoder(torch.rand(2, 3, 96, 64)).shape == (2, 1 + 12 * 8, 32)
    images, mask = batch_for(generator, ratio=0.0)
    tokens, _ = generator.encoder.encode(images, (~mask).nonzero()[:, 1].view(2, -1))
    torch.testing.assert_close(generator.encoder(images), tokens)


def test_encoder_normalises_images_itself():
    encoder = build().encoder
    images = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(images[:, c] - (0.5 - 0.02 * c)) / (0.25 + 0.01 * c) for c in range(3)], dim=1)
    torch.testing.assert_close(encoder.normalise(images), by_hand)
    torch.testing.assert_close(encoder.denormalise(by_hand), images)


@pytest.mark.parametrize("shape", [(2, 3, 33, 32), (2, 1, 32, 32), (3, 32, 32)])
def test_encoder_refuses_images_it_cannot_cut(shape):
    with pytest.raises(ValueError, match="multiples of patch_size 8"):
        build().encoder(torch.rand(shape))


def test_exported_encoder_has_the_names_of_timm_whatever_the_generator():
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = ["patch_embed.proj", *(f"blocks.{index}.{part}" for index in range(4) for part in block), "norm"]
    names = {"cls_token", "pos_embed", *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))}
    for options in OPTIONS.values():
        expected = set(names)
        for index in range(4):
            if not options.get("qkv_bias", True):
                expected.remove(f"blocks.{index}.attn.qkv.bias")
            if options.get("layer_scale"):
                expected |= {f"blocks.{index}.ls1.gamma", f"blocks.{index}.ls2.gamma"}
            if options.get("relative_positions"):
                expected.add(f"blocks.{index}.attn.relative_position_bias_table")
        exported = build(**options).encoder.export_state_dict()
        assert set(exported) == expected
    assert exported["patch_embed.proj.weight"].shape == (32, 3, 8, 8)
    assert exported["blocks.0.attn.qkv.weight"].shape == (96, 32)
    assert exported["pos_embed"].shape == (1, 17, 32)


def test_plain_and_msg_mae_encoders_exchange_weights():
    plain, msg = build(), build(**OPTIONS["msg_mae"])
    with torch.no_grad():
        msg.encoder.blocks[0].mlp.fc1.weight.add_(1)
    plain.encoder.load_state_dict(msg.encoder.state_dict(), strict=True)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(plain.encoder(images), msg.encoder(images))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_generator_comes_back_from_its_state_and_its_encoder_from_what_is_exported(options):
    saved, other, plain = build(**options), build(**options), build(**options).encoder
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    images, mask = batch_for(saved)
    assert not torch.equal(saved(images, mask).pyramid[0], other(images, mask).pyramid[0])
    other.load_state_dict(saved.state_dict(), strict=True)
    assert torch.equal(saved(images, mask).pyramid[0], other(images, mask).pyramid[0])
    keys = plain.load_state_dict(saved.encoder.export_state_dict(), strict=False)
    assert (set(keys.missing_keys), keys.unexpected_keys) == ({"mean", "std"}, [])
    assert torch.equal(plain(images), saved.encoder(images))


def test_saved_generator_holds_mean_and_std():
    state = build().state_dict()
    torch.testing.assert_close(state["encoder.mean"].flatten(), torch.tensor([0.5, 0.48, 0.46]))
    torch.testing.assert_close(state["encoder.std"].flatten(), torch.tensor([0.25, 0.26, 0.27]))


def test_prediction_and_pyramid_are_the_same_images_in_two_spaces():
    generator = build(**OPTIONS["msg_mae"])
    fake = generator(*batch_for(generator))
    for image, prediction in zip(fake.pyramid, fake.prediction, strict=True):
        torch.testing.assert_close(generator.encoder.normalise(image), prediction)


def test_target_is_the_pooled_and_normalised_image():
    generator = build(**OPTIONS["msg_mae"])
    images, _ = batch_for(generator)
    target = generator.target(images, 4)
    assert [level.shape[-1] for level in target] == [32, 16, 8, 4]
    torch.testing.assert_close(generator.encoder.denormalise(target[0]), images)
    by_hand = images[:, :, :8, :8].mean(dim=(2, 3))
    torch.testing.assert_close(generator.encoder.denormalise(target[3])[:, :, 0, 0], by_hand)
    for pooled, image in zip(generator.to_images(target, images), target, strict=True):
        torch.testing.assert_close(generator.encoder.normalise(pooled), image)


def test_norm_pix_target_has_unit_patches_and_maps_back_to_the_image():
    generator = build(norm_pix=True)
    images, mask = batch_for(generator)
    target = generator.target(images, 1)
    patches = patchify(target[0], 8)
    torch.testing.assert_close(patches.mean(dim=-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.std(dim=-1), torch.ones(2, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(generator.to_images(target, images)[0], images, atol=1e-5, rtol=0)
    assert generator(images, mask).uses_target_statistics
    assert not build()(images, mask).uses_target_statistics
    with pytest.raises(ValueError, match="1 level, not 3"):
        generator.target(images, 3)


def test_norm_pix_borrows_statistics_without_gradient():
    generator = build(norm_pix=True)
    images, _ = batch_for(generator)
    images.requires_grad_()
    prediction = torch.randn(2, 3, 32, 32, requires_grad=True)
    generator.to_images((prediction,), images)[0].sum().backward()
    assert images.grad is None
    assert prediction.grad.abs().max() > 0


def test_composite_keeps_visible_pixels_bit_for_bit_and_fills_the_hidden():
    generator = build()
    images, mask = batch_for(generator)
    fake = generator(images, mask)
    hidden = mask.view(2, 1, 4, 4).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    assert torch.equal(fake.composite(images), torch.where(hidden, fake.pyramid[0], images))
    assert torch.equal(fake.composite(images), generator(images, mask).composite(images))


def test_reconstruction_is_read_only():
    generator = build()
    with pytest.raises(dataclasses.FrozenInstanceError):
        generator(*batch_for(generator)).grid = (1, 1)


@pytest.mark.parametrize("options", ["msg_mae", "cross_msg_mae"])
def test_latent_is_the_decoder_input_the_images_depend_on(options):
    generator = build(**OPTIONS[options])
    images, mask = batch_for(generator)
    fake = generator(images, mask)
    for level in fake.pyramid:
        (slope,) = torch.autograd.grad(level.square().sum(), fake.latent, retain_graph=True)
        assert slope.abs().max() > 0
    hidden = fake.latent[:, 1:][mask]
    expected = (generator.decoder.mask_token + generator.decoder.pos_embed[:, 1:]).expand(2, -1, -1)[mask]
    torch.testing.assert_close(hidden, expected)


@pytest.mark.parametrize("options", ["msg_mae", "cross_msg_mae", "everything_msg_mae"])
def test_generator_has_second_derivatives_for_path_length(options):
    generator = build(**OPTIONS[options]).double()
    images, mask = batch_for(generator)
    with sdpa_kernel(SDPBackend.MATH):
        fake = generator(images.double(), mask)
    assert fake.pyramid[0].dtype == torch.float64
    (slope,) = torch.autograd.grad(fake.pyramid[0].square().sum(), fake.latent, create_graph=True)
    slope.square().sum().backward()
    assert generator.decoder.pred.weight.grad.abs().max() > 0
    assert generator.encoder.patch_embed.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bfloat16_autocast_stays_close_and_returns_float32(options):
    generator = build(**options)
    images, mask = batch_for(generator)
    exact = generator(images, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = generator(images, mask)
    for one, other in zip(exact.prediction, rounded.prediction, strict=True):
        assert other.dtype == torch.float32
        assert (one - other).square().mean().sqrt() < 0.02 * one.square().mean().sqrt()
    assert all(level.dtype == torch.float32 for level in rounded.pyramid)


@pytest.mark.parametrize("options", ["msg_mae", "cross_msg_mae", "everything_msg_mae"])
def test_generator_works_wholly_in_bfloat16(options):
    generator = build(**OPTIONS[options]).bfloat16()
    fake = generator(*batch_for(generator), torch.ones(2, 4, 2))
    assert all(level.dtype == torch.float32 and level.isfinite().all() for level in fake.pyramid)


@pytest.mark.parametrize("options", ["msg_mae", "everything_msg_mae"])
def test_mask_may_be_elsewhere_than_the_images(options):
    with torch.device("meta"):
        generator = build(**OPTIONS[options])
        images = torch.rand(2, 3, 32, 32)
    mask = torch.arange(16).expand(2, -1) < 12
    fake = generator(images, mask, torch.ones(2, 4, 2))
    assert fake.mask.device.type == "meta"
    assert [tuple(level.shape[-2:]) for level in fake.pyramid] == list(generator.resolutions)


@pytest.mark.parametrize(
    ("images", "mask", "message"),
    [
        (torch.rand(2, 3, 32, 40), torch.ones(2, 16, dtype=torch.bool), r"\(B, 3, 32, 32\)"),
        (torch.rand(2, 1, 32, 32), torch.ones(2, 16, dtype=torch.bool), r"\(B, 3, 32, 32\)"),
        (torch.rand(3, 32, 32), torch.ones(2, 16, dtype=torch.bool), r"\(B, 3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.ones(2, 16, dtype=torch.bool), r"float images"),
        (torch.rand(2, 3, 32, 32), torch.ones(2, 15, dtype=torch.bool), r"bool mask \(2, 16\)"),
        (torch.rand(2, 3, 32, 32), torch.ones(1, 16, dtype=torch.bool), r"bool mask \(2, 16\)"),
        (torch.rand(2, 3, 32, 32), torch.ones(2, 16), r"bool mask \(2, 16\)"),
        (torch.rand(2, 3, 32, 32), torch.eye(16)[:1].bool().repeat(2, 1).logical_xor(torch.eye(2, 16).bool()), "same"),
    ],
)
def test_images_and_masks_that_do_not_fit_are_refused(images, mask, message):
    with pytest.raises(ValueError, match=message):
        build()(images, mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": (225, 225), "patch_size": 16},
            "image size 225x225 is not a multiple of patch_size 16; use 224x224 or set generator.patch_size",
        ),
        ({"size": (8, 8), "patch_size": 16}, "use 16x16"),
        ({"norm_pix": True, "rgb_heads": True}, "norm_pix predicts normalised patches"),
        ({"norm_pix": True, "patch_size": 1, "channels": 1}, "set generator.patch_size above 1"),
        ({"size": (36, 36), "patch_size": 6, "rgb_heads": True}, "cannot be halved"),
        ({"width": 30}, "generator.width 30 must be a multiple of 4 and of generator.heads 4"),
        ({"decoder_heads": 3}, "generator.decoder_width 16 must be a multiple of 4 and of generator.decoder_heads 3"),
        ({"depth": 0}, "generator.depth must be at least 1, got 0"),
        ({"skips": True, "skip_map": "mirror", "depth": 2}, "skip_map mirror needs depth >= decoder_depth, got 2 < 4"),
        ({"size": (32, 32), "channels": 0}, "channels"),
        ({"layer_scale": 0.0}, "generator.layer_scale must be above 0, got 0; null switches it off"),
        ({"drop_path": 1.0}, "generator.drop_path must be at least 0 and below 1, got 1"),
        ({"decoder_attention": "cross", "encoder_mask_tokens": True}, "no hidden patches as queries; use one"),
        (
            {"decoder_class_token": "constant", "skips": True},
            "leaves out what skips bring in again; use one of the two",
        ),
        ({"decoder_mlp_ratio": 0.5}, "generator.decoder_mlp_ratio must be at least 1, got 0.5"),
        ({"positions": "sine"}, "unknown generator.positions 'sine'; choose from: sincos, learned"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_unknown_size_and_wrong_statistics_are_refused():
    with pytest.raises(ValueError, match="unknown size 'big'; choose from: tiny, small, base, large, huge"):
        MaskedAutoencoder((32, 32), 3, [0.5] * 3, [0.5] * 3, size="big")
    with pytest.raises(ValueError, match="images of 3 channels need 3 means"):
        MaskedAutoencoder((32, 32), 3, [0.5], [0.5], **TINY, patch_size=8)
    with pytest.raises(ValueError, match="positive standard deviations"):
        MaskedAutoencoder((32, 32), 3, [0.5] * 3, [0.5, 0.5, 0.0], **TINY, patch_size=8)


def test_same_seed_gives_the_same_weights_and_reconstruction():
    one, other = build(**OPTIONS["msg_mae"]), build(**OPTIONS["msg_mae"])
    images, mask = batch_for(one)
    assert torch.equal(one(images, mask).pyramid[0], other(images, mask).pyramid[0])


def test_fixed_positions_are_saved_but_never_trained():
    generator = build()
    assert "encoder.pos_embed" in generator.state_dict()
    assert not any("pos_embed" in name for name, _ in generator.named_parameters())
    trainable, with_positions = count_parameters(generator)
    assert with_positions - trainable == 17 * (32 + 16)


def test_learned_positions_are_drawn_small_and_count_as_parameters():
    generator, fixed = build(patch_size=2, positions="learned"), build(patch_size=2)
    for half in (generator.encoder, generator.decoder):
        assert half.pos_embed.requires_grad
        assert half.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(half.pos_embed.mean().item()) < 1e-3
    assert count_parameters(generator) == (count_parameters(fixed)[1],) * 2


def test_mask_tokens_in_the_encoder_stand_where_patches_are_hidden_and_nowhere_else():
    generator = build(encoder_mask_tokens=True)
    encoder, inputs = generator.encoder, []
    encoder.blocks[0].register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0]))
    images, mask = batch_for(generator)
    generator(images, mask)
    encoder(images)
    masked, whole = inputs
    assert masked.shape == (2, 1 + 16, 32)
    token = (generator.mask_token + encoder.pos_embed[:, 1:]).expand(2, -1, -1)
    torch.testing.assert_close(masked[:, 1:], torch.where(mask[..., None], token, whole[:, 1:]))
    torch.testing.assert_close(masked[:, 0], whole[:, 0])


def test_a_decoder_gets_all_tokens_of_an_encoder_with_mask_tokens():
    generator = build(encoder_mask_tokens=True)
    images, mask = batch_for(generator)
    fake = generator(images, mask)
    assert fake.tokens.shape == (2, 1 + 16, 32)
    torch.testing.assert_close(fake.latent, generator.decoder.embed(fake.tokens) + generator.decoder.pos_embed)
    assert "decoder.mask_token" not in generator.state_dict()


@pytest.mark.parametrize("options", ["constant_class_token", "cross_constant_class_token"])
def test_a_constant_class_token_takes_the_place_of_the_encoders_and_of_nothing_else(options):
    generator, usual = build(**OPTIONS[options]), build(**{**OPTIONS[options], "decoder_class_token": "encoder"})
    state = generator.state_dict()
    usual.load_state_dict({name: value for name, value in state.items() if name != "decoder.cls_token"})
    images, mask = batch_for(generator)
    fake, other = generator(images, mask), usual(images, mask)
    token = generator.decoder.cls_token[0] + generator.decoder.pos_embed[0, :1]
    torch.testing.assert_close(fake.latent[:, 0], token.expand(2, -1))
    torch.testing.assert_close(fake.latent[:, 1:], other.latent[:, 1:])
    assert not torch.allclose(fake.pyramid[0], other.pyramid[0], atol=1e-4)


def test_hidden_layers_of_decoder_mlps_have_a_ratio_of_their_own():
    generator = build(mlp_ratio=3.0, decoder_mlp_ratio=2.0)
    assert {block.mlp.fc1.out_features for block in generator.encoder.blocks} == {96}
    assert {block.mlp.fc1.out_features for block in generator.decoder.blocks} == {32}
    assert {block.mlp.fc1.out_features for block in build(mlp_ratio=3.0).decoder.blocks} == {48}


def test_norm_pix_adds_a_millionth_to_the_unbiased_variance_of_a_patch():
    """A patch of 8 x 8 x 3 values +-a has variance a^2 * 192 / 191; at a = 1e-3 the millionth is half of the sum."""
    generator = build(norm_pix=True)
    signs = torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0).double().expand(1, 3, 32, 32)
    mean, std = generator.encoder.mean.double(), generator.encoder.std.double()
    generator, normalised = generator.double(), 0.3 + 1e-3 * signs
    images = normalised * std + mean
    (target,) = generator.target(images)
    expected = 1e-3 * signs / (1e-6 * 192 / 191 + 1e-6) ** 0.5
    torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(generator.to_images((target,), images)[0], images)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_position_codes_are_added_to_the_class_token_too(positions):
    """To move the class token's code is to move the class token, in the encoder and in the decoder."""
    generator = build(positions=positions)
    encoder, decoder = generator.encoder, generator.decoder
    images, mask = batch_for(generator)
    plain = generator(images, mask)
    shift = torch.randn(encoder.width, generator=torch.Generator().manual_seed(1))
    by_position, by_token = encoder.pos_embed.detach().clone(), encoder.cls_token.detach().clone()
    encoder.pos_embed.data[:, 0] += shift
    moved = generator(images, mask).tokens
    assert not torch.allclose(moved, plain.tokens, atol=1e-3)
    encoder.pos_embed.data = by_position
    encoder.cls_token.data += shift
    torch.testing.assert_close(generator(images, mask).tokens, moved)
    encoder.cls_token.data = by_token
    decoder.pos_embed.data[:, 0] += 1
    torch.testing.assert_close(generator(images, mask).latent[:, 0], plain.latent[:, 0] + 1)


def test_class_and_mask_tokens_are_drawn_with_a_std_of_a_fiftieth():
    generator = build(width=1024, heads=4, depth=1, decoder_width=1024, decoder_heads=4, decoder_depth=1)
    hidden = build(width=1024, heads=4, depth=1, encoder_mask_tokens=True).mask_token
    wide = {"decoder_width": 1024, "decoder_heads": 4, "decoder_depth": 1}
    constant = build(decoder_class_token="constant", **wide).decoder.cls_token
    for token in (generator.encoder.cls_token, generator.decoder.mask_token, hidden, constant):
        assert token.std().item() == pytest.approx(0.02, rel=0.09)  # 4 sigma
        assert token.mean().item() == pytest.approx(0, abs=0.0025)


def test_initial_weights_are_a_function_of_the_seed_of_training():
    first, again, other = (generator_of(debug_config("mse", f"training.seed={seed}")) for seed in (1, 1, 2))
    for (name, weight), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(weight, same), name
        constant = bool((weight == weight.flatten()[0]).all())  # biases, and scales of norms
        assert torch.equal(weight, different) == constant, name
