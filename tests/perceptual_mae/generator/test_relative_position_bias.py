"""Relative position bias, against a sum over pairs written out and against timm's BEiT."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import gen_relative_position_index
from timm.models.beit import Beit
from torch import Tensor, nn

from perceptual_mae.generator.encoder import Encoder
from perceptual_mae.generator.relative_position_bias import Pairs, entries_of_pairs, num_entries, resize_table
from perceptual_mae.generator.vit import Attention
from perceptual_mae.images import Size

GRID = (2, 3)


def encoder(grid: Size = GRID, **options: bool) -> Encoder:
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "width": 16, "depth": 2, "heads": 4}
    made = Encoder((4 * grid[0], 4 * grid[1]), 3, [0.5] * 3, [0.25] * 3, **sizes, relative_positions=True, **options)
    for block in made.blocks:
        nn.init.normal_(block.attn.relative_position_bias_table)
    return made.double()


def bias_of_pair(table: Tensor, row: int, column: int, head: int) -> float:
    """What a pair of tokens is biased by, from the words of the contract; token 0 is the class token's."""
    rows, columns = GRID
    table = table.detach()
    offsets = [(down, right) for down in range(1 - rows, rows) for right in range(1 - columns, columns)]
    if row == 0 or column == 0:
        own = {(True, False): 0, (False, True): 1, (True, True): 2}[row == 0, column == 0]
        return float(table[len(offsets) + own, head])
    down = (row - 1) // columns - (column - 1) // columns
    right = (row - 1) % columns - (column - 1) % columns
    return float(table[offsets.index((down, right)), head])


def probabilities_by_hand(attention: Attention, tokens: Tensor) -> Tensor:
    """Attention's probabilities (B, heads, N, N) one number after the other."""
    table, heads = attention.relative_position_bias_table, attention.heads
    size = tokens.shape[-1] // heads
    number = tokens.shape[1]
    probabilities = torch.zeros(len(tokens), heads, number, number, dtype=torch.float64)
    for image, of_image in enumerate(attention.qkv(tokens).tolist()):
        for head in range(heads):
            for row in range(number):
                scores = []
                for column in range(number):
                    query = of_image[row][head * size : (head + 1) * size]
                    key = of_image[column][(heads + head) * size : (heads + head + 1) * size]
                    product = sum(one * other for one, other in zip(query, key, strict=True))
                    scores.append(product / math.sqrt(size) + bias_of_pair(table, row, column, head))
                total = sum(math.exp(score) for score in scores)
                for column, score in enumerate(scores):
                    probabilities[image, head, row, column] = math.exp(score) / total
    return probabilities


def biased_attention() -> tuple[Attention, Pairs, Tensor]:
    torch.manual_seed(1)
    attention = Attention(8, 2, grid=GRID).double()
    nn.init.normal_(attention.relative_position_bias_table)
    return attention, Pairs(entries_of_pairs(GRID), GRID, GRID), torch.randn(2, 7, 8, dtype=torch.float64)


def test_attention_equals_a_sum_over_pairs_in_plain_loops() -> None:
    attention, pairs, tokens = biased_attention()
    expected = probabilities_by_hand(attention, tokens)
    torch.testing.assert_close(attention.probabilities(tokens, pairs), expected)
    values = attention.qkv(tokens)[..., 16:].view(2, 7, 2, 4).transpose(1, 2)
    mixed = attention.proj((expected @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(tokens, pairs), mixed)
    assert not torch.allclose(attention(tokens), mixed, atol=1e-2), "the bias has had its say"


def test_the_softmax_written_out_in_bfloat16_is_biased_too(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, pairs, tokens = biased_attention()
    attention, tokens = attention.float(), tokens.float()
    exact = attention(tokens, pairs)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        approximate = attention(tokens, pairs)
    torch.testing.assert_close(approximate.float(), exact, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("grid", [(2, 3), (4, 4), (1, 5), (3, 1)])
def test_entries_are_those_of_timm(grid: Size) -> None:
    entries = entries_of_pairs(grid)
    assert torch.equal(entries, gen_relative_position_index(grid, class_token=True))
    assert set(entries.flatten().tolist()) == set(range(num_entries(grid)))


def test_the_encoder_equals_timms_beit_weight_for_weight() -> None:
    ours = encoder(qkv_bias=False)
    sizes = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4}
    form = {"num_classes": 0, "global_pool": "", "qkv_bias": False, "use_abs_pos_emb": True, "use_rel_pos_bias": True}
    theirs = Beit(**sizes, **form, init_values=None, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    theirs.load_state_dict(ours.export_state_dict(), strict=True)
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs.double().eval()(ours.normalise(images)))


def test_visible_patches_take_the_rows_and_columns_of_the_whole() -> None:
    pairs, table = Pairs(entries_of_pairs((3, 4)), (3, 4), (3, 4)), torch.randn(num_entries((3, 4)), 2)
    whole, visible = pairs.bias(table), torch.tensor([[0, 5, 11], [3, 4, 8]])
    part = pairs.among(visible).bias(table)
    assert part.shape == (2, 2, 4, 4)
    for image, patches in enumerate(visible.tolist()):
        kept = [0, *(1 + patch for patch in patches)]
        assert torch.equal(part[image], whole[:, kept][:, :, kept])


def test_each_entry_that_a_visible_pair_uses_gets_a_gradient_and_no_other_does() -> None:
    network, visible = encoder((3, 4)), torch.tensor([[0, 1, 6]])
    tokens, _ = network.encode(torch.rand(1, 3, 12, 16, dtype=torch.float64), visible)
    tokens.square().mul(torch.randn_like(tokens)).sum().backward()
    used = {35, 36, 37}  # the class token's, after 5 x 7 offsets
    for first in (0, 1, 6):
        for second in (0, 1, 6):
            down, right = first // 4 - second // 4, first % 4 - second % 4
            used.add((down + 2) * 7 + right + 3)
    for block in network.blocks:
        gradient = block.attn.relative_position_bias_table.grad
        assert set(gradient.abs().amax(1).nonzero().flatten().tolist()) == used


def test_hidden_patches_leave_the_others_as_if_attention_to_them_were_forbidden() -> None:
    network, visible = encoder((3, 4)), torch.tensor([[1, 2, 7, 10]])
    images = torch.rand(1, 3, 12, 16, dtype=torch.float64)
    bias = Pairs.bias

    def forbidding(self: Pairs, table: Tensor) -> Tensor:
        biases = bias(self, table)
        hidden = [1 + patch for patch in range(12) if patch not in visible[0].tolist()]
        biases[..., hidden] = -1e9
        return biases

    tokens, _ = network.encode(images, visible)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pairs, "bias", forbidding)
        whole = network(images)
    torch.testing.assert_close(tokens, whole[:, [0, *(1 + visible[0])]])


def test_a_table_of_zeros_changes_nothing() -> None:
    torch.manual_seed(0)
    options = {"patch_size": 4, "width": 16, "depth": 2, "heads": 4}
    plain = Encoder((8, 12), 3, [0.5] * 3, [0.25] * 3, **options)
    biased = Encoder((8, 12), 3, [0.5] * 3, [0.25] * 3, **options, relative_positions=True)
    keys = biased.load_state_dict(plain.state_dict(), strict=False)
    assert keys.missing_keys == [f"blocks.{number}.attn.relative_position_bias_table" for number in range(2)]
    images = torch.rand(2, 3, 8, 12)
    torch.testing.assert_close(biased(images), plain(images))


def test_a_table_for_another_grid_is_interpolated_between_offsets() -> None:
    table = torch.randn(num_entries((2, 3)), 4)
    resized = resize_table(table, (2, 3), (4, 5))
    assert resized.shape == (num_entries((4, 5)), 4)
    assert torch.equal(resized[-3:], table[-3:])
    head = F.interpolate(table[:-3, 2].view(1, 1, 3, 5), size=(7, 9), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[:-3, 2], head.flatten())
    torch.testing.assert_close(resized[31], table[7])  # no offset at all stays no offset
    assert resize_table(table, (2, 3), (2, 3)) is table


def test_an_encoder_takes_larger_images_by_an_interpolated_table() -> None:
    small, large = encoder((2, 3)), encoder((4, 6))
    state = {name: value for name, value in small.export_state_dict().items() if "table" not in name}
    del state["pos_embed"]
    large.load_state_dict(state, strict=False)
    for one, other in zip(small.blocks, large.blocks, strict=True):
        table = resize_table(one.attn.relative_position_bias_table, (2, 3), (4, 6))
        other.attn.relative_position_bias_table.data = table.detach()
    large.pos_embed = torch.cat(
        [
            small.pos_embed[:, :1],
            F.interpolate(small.pos_embed[:, 1:].view(1, 2, 3, 16).permute(0, 3, 1, 2), size=(4, 6), mode="bicubic")
            .flatten(2)
            .transpose(1, 2),
        ],
        dim=1,
    )
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(small(images), large(images))
    torch.testing.assert_close(small.class_attention(images), large.class_attention(images))
