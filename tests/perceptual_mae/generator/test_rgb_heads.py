"""RGB heads: where they sit, and the images they write, against forms written out by hand."""

import logging

import pytest
import torch
import torch.nn.functional as F

from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.rgb_heads import RgbHead, head_block
from perceptual_mae.images import unpatchify


def test_heads_sit_in_ascending_resolution_below_the_last_block():
    blocks = {224 // 2**level: head_block(level, 8) for level in range(1, 6)}
    assert blocks == {7: 3, 14: 4, 28: 5, 56: 6, 112: 7}


def test_a_shallow_decoder_shares_its_first_block():
    assert [head_block(level, 3) for level in range(1, 6)] == [2, 1, 1, 1, 1]
    assert head_block(1, 1) == 1


def build(size, patch_size, **options):
    width = {"width": 16, "depth": 4, "heads": 2, "decoder_width": 8, "decoder_depth": 6, "decoder_heads": 2}
    torch.manual_seed(0)
    return MaskedAutoencoder(
        size, 3, [0.5] * 3, [0.5] * 3, patch_size=patch_size, rgb_heads=True, **{**width, **options}
    )


def test_pooling_head_averages_tokens_before_a_linear_map():
    head = RgbHead(8, 3, (4, 6), 2, 4, "native")  # 8x12 pixels, patches of 2, image of 2x3
    tokens = torch.randn(2, 25, 8)
    image = head(tokens)
    normalised = head.norm(tokens[:, 1:]).view(2, 4, 6, 8)
    by_hand = head.predict(normalised[:, 2:4, 4:6].mean(dim=(1, 2)))
    assert image.shape == (2, 3, 2, 3)
    torch.testing.assert_close(image[:, :, 1, 2], by_hand)


def test_patch_head_writes_a_smaller_patch_for_each_token():
    head = RgbHead(8, 3, (4, 6), 8, 2, "native")  # each token writes 4x4 of a 16x24 image
    tokens = torch.randn(2, 25, 8)
    image = head(tokens)
    patch = head.predict(head.norm(tokens[:, 1 + 6 * 1 + 2])).view(2, 4, 4, 3)  # second row, third column
    assert image.shape == (2, 3, 16, 24)
    torch.testing.assert_close(image[:, :, 4:8, 8:12], patch.permute(0, 3, 1, 2))


def test_full_head_writes_the_image_and_averages_it_down():
    head = RgbHead(8, 3, (4, 6), 8, 4, "full")
    tokens = torch.randn(2, 25, 8)
    whole = unpatchify(head.predict(F.layer_norm(tokens[:, 1:], (8,), eps=1e-6)), 8, (4, 6))
    torch.testing.assert_close(head(tokens), F.avg_pool2d(whole, 4))
    assert {name for name, _ in head.named_parameters()} == {"predict.weight", "predict.bias"}


def test_native_heads_are_sized_for_their_level():
    heads = build((32, 32), 4).decoder.heads
    assert [head.predict.out_features for head in heads] == [3 * 4, 3, 3]  # 16 and 8 pixels, and 4 by pooling
    assert [head.pool for head in heads] == [1, 1, 2]


def test_patch_14_falls_back_to_full_heads_where_it_does_not_divide():
    generator = build((112, 112), 14)
    assert generator.resolutions == ((112, 112), (56, 56), (28, 28), (14, 14), (7, 7))
    assert generator.fallback_heads == ((28, 28), (14, 14), (7, 7))  # 56: 7 pixels a token
    assert build((32, 32), 4).fallback_heads == ()
    assert build((32, 32), 4, head_form="full").fallback_heads == (), "asked for, so no surprise to report"


def test_heads_read_the_blocks_they_sit_on():
    generator = build((32, 32), 4)
    read = {}
    for level, head in enumerate(generator.decoder.heads, start=1):
        head.register_forward_pre_hook(lambda _, inputs, level=level: read.__setitem__(level, inputs[0]))
    outputs = []
    for block in generator.decoder.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    generator(torch.rand(1, 3, 32, 32), (torch.arange(64) < 48)[None])
    for level, block in ((1, 5), (2, 4), (3, 3)):
        assert read[level] is outputs[block - 1]


@pytest.mark.parametrize(("decoder_depth", "warns"), [(4, False), (3, True)])
def test_sharing_a_block_is_reported(caplog, decoder_depth, warns):
    with caplog.at_level(logging.WARNING):
        build((32, 32), 4, decoder_depth=decoder_depth)  # four levels
    assert ("share block 1" in caplog.text) == warns
