"""Which blocks give a dense head its maps."""

from halves import taps_of_method
from perceptual_mae.generator.skips import tapped_blocks
from perceptual_mae.transfer.taps import quarter_taps, skip_taps, standard_taps


def test_the_standard_taps_are_those_of_the_published_recipes() -> None:
    assert standard_taps(12) == (4, 6, 8, 12)
    assert standard_taps(24) == (8, 12, 16, 24)
    assert quarter_taps(12) == (3, 6, 9, 12)


def test_an_msg_mae_hands_over_blocks_of_its_skips_and_the_last() -> None:
    tapped = tapped_blocks(12, 8)  # ViT-B and MAE's decoder
    assert sorted(tapped) == [5, 6, 7, 8, 9, 10, 11]
    assert skip_taps(tapped, 12) == (5, 7, 10, 12)
    assert set(skip_taps(tapped, 12)) <= {*tapped, 12}


def test_shallow_encoders_hand_blocks_over_twice() -> None:
    assert standard_taps(2) == (1, 1, 1, 2)
    assert skip_taps((1,), 2) == (1, 1, 2, 2)


def test_a_run_says_by_its_skips_which_maps_it_hands_over() -> None:
    msg = taps_of_method("mse", "generator.skips=true", "generator.depth=6")
    plain = taps_of_method("mse", "generator.depth=6")
    assert (msg.source, msg.has_norms, msg.blocks) == ("skips", True, (3, 4, 5, 6))
    assert (plain.source, plain.has_norms, plain.blocks) == ("standard", False, (2, 3, 4, 6))
