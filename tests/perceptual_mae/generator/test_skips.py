"""Which encoder block feeds which decoder block, and how they are joined."""

import pytest
import torch
from torch import Tensor, nn

from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.generator.skips import Skip, tapped_blocks
from perceptual_mae.masking import draw_masks, random


def build(**options):
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 6, "heads": 4, "decoder_width": 16, "decoder_depth": 4, "decoder_heads": 2}
    return MaskedAutoencoder((32, 32), 3, (0.5,) * 3, (0.25,) * 3, patch_size=8, **{**sizes, **options})


def reconstruct(generator):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = draw_masks(random, (4, 4), 12, [torch.Generator().manual_seed(seed) for seed in range(2)])
    return generator(images, mask)


def record(module: nn.Module, kept: dict, key: object) -> None:
    """Keep the first input and the output of a module's next call."""
    module.register_forward_hook(lambda module, inputs, output: kept.__setitem__(key, (inputs, output)))


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


@pytest.mark.parametrize("attention", ["self", "cross"])
@pytest.mark.parametrize("skip_map", ["mirror", "even"])
def test_each_decoder_block_is_fed_by_the_encoder_block_that_tapped_blocks_names(skip_map, attention):
    generator = build(skips=True, skip_map=skip_map, decoder_attention=attention)
    calls: dict = {}
    for number, block in enumerate(generator.encoder.blocks, start=1):
        record(block, calls, ("encoder", number))
    for number, skip in enumerate(generator.decoder.skips, start=2):
        record(skip.norm, calls, ("skip", number))
        record(skip.fuse, calls, ("fused", number))
    for number, block in enumerate(generator.decoder.blocks, start=1):
        record(block, calls, ("decoder", number))
    reconstruct(generator)
    taps = tapped_blocks(6, 4, skip_map)
    assert len(set(taps)) == 3
    for number, tap in enumerate(taps, start=2):
        assert torch.equal(calls["skip", number][0][0], calls["encoder", tap][1])
        fused = calls["fused", number][1]
        assert torch.equal(calls["decoder", number][0][-1 if attention == "cross" else 0], fused)
        # The first half of the fusion's input: the output of the block before.
        if attention == "self":
            assert torch.equal(calls["fused", number][0][0][..., :16], calls["decoder", number - 1][1])


def test_a_skip_joins_the_decoders_tokens_first_and_the_tap_second():
    """With the identity for one half of the fusion and 0 for the other, the tokens or the tap come through alone."""
    skip = Skip(8, 4, own_projection=True)
    tokens, tap = torch.randn(2, 5, 4), torch.randn(2, 5, 8)
    narrowed = skip.narrow(tap, nn.Identity())
    torch.testing.assert_close(narrowed, skip.project(nn.functional.layer_norm(tap, (8,), eps=1e-6)))
    eye, zero = torch.eye(4), torch.zeros(4, 4)
    for weight, expected in ((torch.cat([eye, zero], dim=1), tokens), (torch.cat([zero, eye], dim=1), narrowed)):
        skip.fuse.weight.data, skip.fuse.bias.data = weight, torch.zeros(4)
        torch.testing.assert_close(skip(tokens, narrowed), expected)


def test_a_generator_whose_skips_pass_the_decoders_tokens_alone_is_one_without_skips():
    plain, skipping = build(), build(skips=True)
    skipping.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(reconstruct(plain).pyramid[0], reconstruct(skipping).pyramid[0], atol=1e-3)
    for skip in skipping.decoder.skips:
        skip.fuse.weight.data, skip.fuse.bias.data = torch.eye(16, 32), torch.zeros(16)
    torch.testing.assert_close(reconstruct(plain).pyramid[0], reconstruct(skipping).pyramid[0])


def test_what_is_skipped_to_hidden_patches_is_the_mask_token_with_its_position():
    generator = build(skips=True)
    calls: dict[object, tuple[tuple[Tensor, ...], Tensor]] = {}
    for number, skip in enumerate(generator.decoder.skips):
        record(skip.fuse, calls, number)
    mask = reconstruct(generator).mask
    expected = (generator.decoder.mask_token + generator.decoder.pos_embed[:, 1:]).expand(2, -1, -1)[mask]
    for number in range(3):
        skipped = calls[number][0][0][:, 1:, 16:]
        torch.testing.assert_close(skipped[mask], expected)
        assert not torch.allclose(skipped[~mask], generator.decoder.mask_token[0, 0] + 0 * skipped[~mask])
