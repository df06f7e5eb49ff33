"""Which encoder block feeds which decoder block."""

import pytest

from perceptual_mae.generator.skips import tapped_blocks


def test_mirror_pairs_blocks_from_the_deepest_on():
    assert tapped_blocks(12, 8, "mirror") == (11, 10, 9, 8, 7, 6, 5)
    assert tapped_blocks(4, 4, "mirror") == (3, 2, 1)


@pytest.mark.parametrize(
    ("depth", "decoder_depth", "taps"),
    [
        (24, 8, (21, 18, 15, 12, 9, 6, 3)),
        (12, 6, (10, 8, 6, 4, 2)),
        (10, 4, (8, 5, 3)),  # 7.5, 5, 2.5 rounded half up
        (2, 4, (2, 1, 1)),
        (1, 8, (1, 1, 1, 1, 1, 1, 1)),
    ],
)
def test_even_spreads_taps_over_the_whole_encoder(depth, decoder_depth, taps):
    assert tapped_blocks(depth, decoder_depth, "even") == taps


@pytest.mark.parametrize(
    ("depth", "decoder_depth", "same_as"),
    [(12, 8, "mirror"), (15, 8, "mirror"), (8, 8, "mirror"), (16, 8, "even"), (24, 8, "even"), (7, 8, "even")],
)
def test_auto_mirrors_unless_that_leaves_half_the_encoder_out(depth, decoder_depth, same_as):
    assert tapped_blocks(depth, decoder_depth) == tapped_blocks(depth, decoder_depth, same_as)


def test_one_decoder_block_has_no_skips():
    assert tapped_blocks(12, 1) == ()
