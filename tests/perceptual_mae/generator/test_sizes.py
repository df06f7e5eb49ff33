"""Parameter counts of every size and preset, by the published figures and by formula; nothing is allocated."""

import pytest
import torch

from perceptual_mae.generator.masked_autoencoder import SIZES, MaskedAutoencoder, count_parameters

MSG_MAE = {"skips": True, "rgb_heads": True}
FULL_DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
CIFAR = {"patch_size": 4, "width": 192, "depth": 6, "heads": 3}
CIFAR |= {"decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4}
STL = {"patch_size": 8, "width": 192, "depth": 8, "heads": 6}
STL |= {"decoder_width": 128, "decoder_depth": 5, "decoder_heads": 4}


def counts(side=224, **options):
    with torch.device("meta"):
        generator = MaskedAutoencoder((side, side), 3, [0.5] * 3, [0.5] * 3, **options)
    return count_parameters(generator.encoder)[0], *count_parameters(generator)


@pytest.mark.parametrize(
    ("size", "encoder", "trainable", "with_positions"),
    [
        ("tiny", 5_486_592, 31_200_000, 31_338_688),
        ("small", 21_590_016, 47_401_728, 47_578_240),
        ("base", 85_647_360, 111_655_680, 111_907_840),
        ("large", 303_099_904, 329_239_296, 329_541_888),
        ("huge", 630_435_840, 656_613_964, 657_074_508),
    ],
)
def test_mae_of_each_size_has_its_count(size, encoder, trainable, with_positions):
    assert counts(size=size, **FULL_DECODER) == (encoder, trainable, with_positions)


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_large_sizes_keep_the_decoder_of_the_paper(size):
    assert counts(size=size) == counts(size=size, **FULL_DECODER)


@pytest.mark.parametrize(
    ("options", "with_positions"),
    [
        ({"size": "base", **MSG_MAE}, 118_485_762),
        ({"size": "base", "rgb_heads": True}, 112_045_314),
        ({"size": "base", "skip_projection": "shared", **MSG_MAE}, 115_729_666),
        ({"size": "base", "skip_projection": "shared", "head_form": "full", **MSG_MAE}, 117_562_112),
        ({"size": "tiny", **FULL_DECODER, **MSG_MAE}, 35_844_162),
        ({"size": "small", **FULL_DECODER, **MSG_MAE}, 52_774_530),
        ({"size": "large", **FULL_DECODER, **MSG_MAE}, 337_040_898),
    ],
)
def test_skips_and_heads_add_what_they_should(options, with_positions):
    assert counts(**options)[2] == with_positions


@pytest.mark.slow
def test_trainable_msg_mae_of_vit_base():
    assert counts(**MSG_MAE)[1] == 118_233_602


@pytest.mark.parametrize(
    ("side", "options", "plain", "msg"),
    [
        (32, CIFAR, 3_524_336, 3_701_378),
        (96, STL, 4_684_160, 4_925_634),
        (224, {"size": "tiny"}, 8_417_280, 9_025_794),
        (224, {"size": "small"}, 26_751_360, 27_973_506),
    ],
)
def test_presets_of_small_data(side, options, plain, msg):
    assert (counts(side, **options)[2], counts(side, **options, **MSG_MAE)[2]) == (plain, msg)


@pytest.mark.parametrize("size", SIZES)
def test_encoder_count_follows_from_its_width_and_depth(size):
    width, depth, patch_size = SIZES[size].width, SIZES[size].depth, SIZES[size].patch_size
    blocks = depth * (12 * width**2 + 13 * width)
    embedding = width * (3 * patch_size**2 + 1)
    assert counts(size=size)[0] == blocks + embedding + width + 2 * width  # and class token, final norm
