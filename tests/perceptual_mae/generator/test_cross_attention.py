"""The decoder of cross-attention: which tokens attend to which, by what changes when something is moved."""

import pytest
import torch
from torch import Tensor

from perceptual_mae.generator.cross_attention import CrossAttention, CrossBlock
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder, count_parameters
from perceptual_mae.images import patchify

FORMS = {"plain": {}, "msg_mae": {"skips": True, "rgb_heads": True}}
HIDDEN = [patch for patch in range(16) if patch not in (1, 6, 11, 12)]

every_form = pytest.mark.parametrize("form", FORMS)


def build(form: str = "plain", **options: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 4, "heads": 4, "decoder_width": 16, "decoder_depth": 4, "decoder_heads": 2}
    options = {"decoder_attention": "cross", **FORMS[form], **options}
    return MaskedAutoencoder((32, 32), 3, [0.5] * 3, [0.25] * 3, patch_size=8, **sizes, **options).double().eval()


def predict(generator: MaskedAutoencoder, images: Tensor | None = None) -> Tensor:
    """The predicted patches (L, values) of one image of which the patches 1, 6, 11 and 12 are visible."""
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, HIDDEN] = True
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double() if images is None else images
    with torch.no_grad():
        return patchify(generator(images, mask).prediction[0], 8)[0]


def moved(before: Tensor, after: Tensor) -> list[int]:
    return [patch for patch in range(16) if not torch.equal(before[patch], after[patch])]


@every_form
@pytest.mark.parametrize("patch", [0, 15])
def test_a_hidden_patchs_position_moves_its_own_prediction_alone(form: str, patch: int) -> None:
    generator = build(form)
    before = predict(generator)
    generator.decoder.pos_embed[0, 1 + patch] += 1
    assert moved(before, predict(generator)) == [patch]


@every_form
def test_in_a_decoder_of_self_attention_it_moves_all_of_them(form: str) -> None:
    generator = build(form, decoder_attention="self")
    before = predict(generator)
    generator.decoder.pos_embed[0, 1] += 1
    assert moved(before, predict(generator)) == list(range(16))


@every_form
@pytest.mark.parametrize("patch", [0, 6])
def test_one_query_of_any_patch_moves_its_own_output_alone(form: str, patch: int) -> None:
    """What enters the first block in a patch's place, hidden or visible, in the place of the mask token."""
    generator = build(form)
    before = predict(generator)

    def nudge(module: torch.nn.Module, arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        tokens, visible = arguments
        tokens = tokens.clone()
        tokens[:, 1 + patch] += torch.linspace(-1, 1, 16)
        return tokens, visible

    generator.decoder.blocks[0].register_forward_pre_hook(nudge)
    assert moved(before, predict(generator)) == [patch]


@every_form
def test_visible_patches_ask_by_mask_token_and_position_as_hidden_ones_do(form: str) -> None:
    generator, asked = build(form), []
    generator.decoder.blocks[0].register_forward_pre_hook(lambda module, arguments: asked.append(arguments))
    predict(generator)
    tokens, visible = asked[0]
    expected = generator.decoder.mask_token + generator.decoder.pos_embed[:, 1:]
    torch.testing.assert_close(tokens[:, 1:], expected, rtol=0, atol=0)
    assert visible.shape == (1, 1 + 4, 16)


@every_form
def test_each_visible_patch_moves_every_prediction(form: str) -> None:
    generator = build(form)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    before = predict(generator, images)
    for patch in (1, 6, 11, 12):
        row, column = divmod(patch, 4)
        changed = images.clone()
        changed[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] *= 0.5
        assert moved(before, predict(generator, changed)) == list(range(16))


def test_a_tap_joins_what_its_block_looks_at() -> None:
    generator, keys = build("msg_mae"), []
    for block in generator.decoder.blocks:
        block.register_forward_pre_hook(lambda module, arguments: keys.append(arguments[1]))
    predict(generator)
    assert all(visible.shape == (1, 5, 16) for visible in keys)
    assert all(not torch.equal(keys[0], other) for other in keys[1:])
    keys.clear()
    plain = build()
    for block in plain.decoder.blocks:
        block.register_forward_pre_hook(lambda module, arguments: keys.append(arguments[1]))
    predict(plain)
    assert all(torch.equal(keys[0], other) for other in keys[1:])


def test_the_attention_is_a_weighted_mean_of_what_is_looked_at() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 2).double()
    tokens, others = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 8).double()
    by_hand = torch.zeros(2, 3, 8).double()
    weight, bias = attention.kv.weight, attention.kv.bias
    for image in range(2):
        for token in range(3):
            query = attention.q(tokens[image, token])
            keys, values = others[image] @ weight[:8].T + bias[:8], others[image] @ weight[8:].T + bias[8:]
            for head in (slice(0, 4), slice(4, 8)):
                shares = torch.stack([(query[head] * key[head]).sum() / 2 for key in keys]).exp()
                by_hand[image, token, head] = (shares[:, None] * values[:, head]).sum(0) / shares.sum()
    torch.testing.assert_close(attention(tokens, others), attention.proj(by_hand))


def test_in_bfloat16_the_written_out_softmax_is_the_kernels() -> None:
    torch.manual_seed(0)
    block = CrossBlock(16, 2, 4.0)
    tokens, others = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = block(tokens, others)
    exact = block(tokens, others)
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()


def test_it_has_one_norm_a_block_more_than_the_decoder_of_self_attention() -> None:
    more = count_parameters(build())[0] - count_parameters(build(decoder_attention="self"))[0]
    assert more == 4 * 2 * 16


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 16 is not a multiple of the number of heads 3"):
        CrossAttention(16, 3)
