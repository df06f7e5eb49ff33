"""Positions, patch embedding and attention against hand-worked values and independent forms."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as TimmBlock
from torch.nn.attention import SDPBackend, sdpa_kernel

from perceptual_mae.generator.cross_attention import CrossBlock
from perceptual_mae.generator.vit import (
    Attention,
    Block,
    LayerNorm,
    PatchEmbed,
    initialise,
    resize_positions,
    sincos_positions,
)
from perceptual_mae.images import patchify


def test_positions_have_the_values_worked_by_hand():
    golden = [
        [0, 0, 0, 0, 0, 0, 0, 0],  # class token
        [0, 0, 1, 1, 0, 0, 1, 1],
        [0.841471, 0.01, 0.540302, 0.99995, 0, 0, 1, 1],  # row 0, column 1
        [0, 0, 1, 1, 0.841471, 0.01, 0.540302, 0.99995],  # row 1, column 0
    ]
    torch.testing.assert_close(sincos_positions((2, 2), 8)[0, :4], torch.tensor(golden), atol=1e-6, rtol=0)


def test_positions_of_vit_base_have_the_known_sum():
    positions = sincos_positions((14, 14), 768)
    assert positions.shape == (1, 197, 768)
    assert positions[:, 1:].double().sum().item() == pytest.approx(69594.494, abs=2e-3)
    assert positions[:, 1:].double().abs().mean().item() == pytest.approx(0.558822, abs=1e-6)


def test_positions_of_a_wide_grid_run_along_rows_first():
    positions = sincos_positions((2, 3), 8)[0, 1:].view(2, 3, 8)
    assert torch.equal(positions[0, :, 4:], positions[0, :1, 4:].expand(3, -1)), "one row, one row code"
    assert torch.equal(positions[:, 2, :4], positions[:1, 2, :4].expand(2, -1)), "one column, one column code"


def test_positions_refuse_a_width_they_cannot_fill():
    with pytest.raises(ValueError, match="width 6 is not a multiple of 4"):
        sincos_positions((2, 2), 6)


def test_resized_positions_keep_the_class_row_and_follow_bicubic_interpolation():
    positions = torch.randn(1, 1 + 12, 8)
    resized = resize_positions(positions, (3, 4), (6, 5))
    channel = F.interpolate(positions[0, 1:, 2].view(1, 1, 3, 4), size=(6, 5), mode="bicubic", align_corners=False)
    assert torch.equal(resized[:, 0], positions[:, 0])
    torch.testing.assert_close(resized[0, 1:, 2], channel.flatten())
    assert resize_positions(positions, (3, 4), (3, 4)) is positions


@pytest.mark.parametrize(("channels", "patch_size"), [(3, 4), (1, 8), (5, 2)])
def test_patch_embedding_equals_the_convolution_it_is_stored_as(channels, patch_size):
    embed = PatchEmbed(channels, patch_size, 12)
    images = torch.rand(2, channels, 16, 8)
    tokens = embed(patchify(images, patch_size))
    torch.testing.assert_close(tokens, embed.proj(images).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_changing_a_patch_changes_only_its_own_token():
    embed, images = PatchEmbed(3, 4, 12), torch.rand(1, 3, 16, 8)
    changed = images.clone()
    changed[:, :, 8:12, 4:8] += 0.1  # third row, second column of two: patch 5
    difference = (embed(patchify(changed, 4)) - embed(patchify(images, 4))).abs().amax(dim=-1)[0]
    assert difference.nonzero().flatten().tolist() == [5]


def written_out_attention(attention, tokens):
    width = tokens.shape[-1]
    size = width // attention.heads
    queries, keys, values = attention.qkv(tokens).split(width, dim=-1)
    parts = []
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / size**0.5
        parts.append(scores.softmax(dim=-1) @ values[..., part])
    return attention.proj(torch.cat(parts, dim=-1))


def test_attention_equals_one_head_after_the_other():
    attention, tokens = Attention(24, 3).double(), torch.randn(2, 7, 24, dtype=torch.float64)
    torch.testing.assert_close(attention(tokens), written_out_attention(attention, tokens))


def test_bfloat16_attention_on_the_cpu_writes_the_softmax_out(monkeypatch):
    attention, tokens = Attention(24, 3), torch.randn(2, 7, 24)
    exact = attention(tokens)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        approximate = attention(tokens)
    torch.testing.assert_close(approximate.float(), exact, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_block_equals_timms_under_its_names(qkv_bias, layer_scale):
    block = Block(24, 3, 2.0, qkv_bias=qkv_bias, layer_scale=layer_scale)
    oracle = TimmBlock(24, 3, mlp_ratio=2.0, qkv_bias=qkv_bias, init_values=layer_scale, norm_layer=LayerNorm)
    if layer_scale is not None:
        assert torch.equal(block.ls1.gamma, torch.full((24,), layer_scale))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    oracle.load_state_dict(block.state_dict(), strict=True)
    tokens = torch.randn(2, 7, 24)
    torch.testing.assert_close(block(tokens), oracle.eval()(tokens))


def test_block_has_a_second_derivative_with_either_attention():
    block = Block(8, 2, 2.0)

    def penalty_gradient(block, tokens):
        (slope,) = torch.autograd.grad(block(tokens).square().sum(), tokens, create_graph=True)
        slope.square().sum().backward()
        return block.attn.qkv.weight.grad

    tokens = torch.randn(1, 5, 8)
    with sdpa_kernel(SDPBackend.MATH):
        fused = penalty_gradient(block, tokens.clone().requires_grad_()).clone()
    block.zero_grad()
    explicit = penalty_gradient(block.bfloat16(), tokens.bfloat16().requires_grad_()).float()
    assert F.cosine_similarity(fused.flatten(), explicit.flatten(), dim=0) > 0.99


def test_initial_weights_are_xavier_uniform_and_biases_zero():
    embed, attention = PatchEmbed(3, 4, 64), Attention(64, 4)
    embed.apply(initialise)
    attention.apply(initialise)
    for weight, fans in ((embed.proj.weight, 48 + 64), (attention.qkv.weight, 64 + 192)):
        bound = (6 / fans) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert embed.proj.bias.abs().max() == 0
    assert attention.qkv.bias.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_probabilities_are_those_the_layer_mixes_values_by(dtype):
    attention, tokens = Attention(24, 3).to(dtype), torch.randn(2, 7, 24, dtype=dtype)
    probabilities = attention.probabilities(tokens)
    assert probabilities.shape == (2, 3, 7, 7)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3, 7, dtype=probabilities.dtype))
    values = attention.qkv(tokens).split(24, dim=-1)[2].view(2, 7, 3, 8).transpose(1, 2)
    mixed = (probabilities.to(dtype) @ values).transpose(1, 2).flatten(2)
    close = {"atol": 0.02, "rtol": 0.05} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(attention.proj(mixed), attention(tokens), **close)


@pytest.mark.parametrize("masks", [None, torch.tensor([[1.0, 1.0], [2.0, 0.5]])], ids=["no-drop-path", "drop-path"])
def test_the_first_layer_scale_is_on_attention_and_the_second_on_the_mlp(masks):
    torch.manual_seed(0)
    block, tokens = Block(16, 2, 2.0, layer_scale=0.1), torch.randn(2, 5, 16)
    block.ls1.gamma.data, block.ls2.gamma.data = torch.rand(16), torch.rand(16)
    attention, mlp = (1, 1) if masks is None else masks.view(2, 2, 1, 1).unbind(1)
    middle = tokens + attention * block.ls1.gamma * block.attn(block.norm1(tokens))
    expected = middle + mlp * block.ls2.gamma * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(tokens, masks), expected)


def test_the_first_layer_scale_of_a_cross_block_is_on_attention_and_the_second_on_the_mlp():
    torch.manual_seed(0)
    block, tokens, visible = CrossBlock(16, 2, 2.0, layer_scale=0.1), torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    block.ls1.gamma.data, block.ls2.gamma.data = torch.rand(16), torch.rand(16)
    middle = tokens + block.ls1.gamma * block.attn(block.norm1(tokens), block.norm_visible(visible))
    expected = middle + block.ls2.gamma * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(tokens, visible), expected)
