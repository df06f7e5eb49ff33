"""Parts of a vision transformer: patch embedding, 2-D sin-cos positions, pre-norm blocks, with timm's parameter names.

Shapes: B images, L patches, N tokens, D width, C channels, p patch size.
As in MAE, LayerNorm adds 1e-6 to the variance, GELU is exact, and there is no dropout.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceptual_mae.generator.relative_position_bias import Pairs, num_entries
from perceptual_mae.images import Size

Positions = Literal["sincos", "learned"]
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class PatchEmbed(nn.Module):
    """Patch embedding: tokens (B, L, D) of patch vectors (B, L, p*p*C) that were cut by `patchify`.

    The parameters have the shape of a p x p convolution, as timm stores them; they act as the same linear map on
    patches already cut, so that hidden patches cost nothing.
    """

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Return tokens (B, L, D) of normalised patch vectors (B, L, p*p*C)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(
            1
        )  # (D, p*p*C): row, column, channel, as `patchify` orders
        return F.linear(patches, weight, self.proj.bias)


def sincos_positions(grid: Size, width: int) -> Tensor:
    """Fixed position codes (1, 1+L, D): a row of zeros for the class token, then one row a patch, row-major.

    The first half of a code encodes the column, the second half the row; each half is [sin, cos] at D/4 wavelengths
    from 2 pi to 10000 * 2 pi (MAE). Raises ValueError unless the width is a multiple of 4.
    """
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    return sincos_codes(rows, columns, width)


def sincos_codes(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """The codes of `sincos_positions` for patches at such rows (H,) and columns (W,), float64."""
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which 2-D sin-cos positions need")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row_angles, column_angles = (torch.outer(places, frequencies) for places in (rows, columns))
    row_code = torch.cat([row_angles.sin(), row_angles.cos()], dim=1)[:, None].expand(-1, len(columns), -1)
    column_code = torch.cat([column_angles.sin(), column_angles.cos()], dim=1)[None].expand(len(rows), -1, -1)
    patches = torch.cat([column_code, row_code], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros_like(patches[:1]), patches])[None].to(torch.get_default_dtype())


def resize_positions(positions: Tensor, old: Size, new: Size) -> Tensor:
    """Position codes (1, 1+L, D) for another grid: bicubic interpolation between patches, the class row unchanged."""
    if old == new:
        return positions
    patches = rearrange(positions[:, 1:], "b (h w) d -> b d h w", h=old[0])
    patches = F.interpolate(patches, size=new, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], rearrange(patches, "b d h w -> b (h w) d")], dim=1)


def register_positions(owner: nn.Module, positions: Positions, grid: Size, width: int) -> None:
    """Register a network's `pos_embed` (1, 1+L, D): a buffer of fixed codes, or a parameter drawn with std 0.02."""
    if positions == "sincos":
        owner.register_buffer("pos_embed", sincos_positions(grid, width))
    elif positions == "learned":
        learned = nn.init.trunc_normal_(torch.empty(1, 1 + grid[0] * grid[1], width), std=0.02)
        owner.register_parameter("pos_embed", nn.Parameter(learned))
    else:
        raise ValueError(f"unknown generator.positions {positions!r}; choose from: sincos, learned")


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, D).

    With `grid` it has a table of relative positions, and `pairs` select the entries that are added to the scores. In
    bfloat16 on a CPU the softmax is written out, as it is faster there than the fused kernel. Elsewhere the fused
    kernel is used; for second derivatives enter `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the forward.
    """

    relative_position_bias_table: nn.Parameter | None

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, grid: Size | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        table = None if grid is None else nn.Parameter(torch.zeros(num_entries(grid), heads))
        self.register_parameter("relative_position_bias_table", table)

    def forward(
        self, tokens: Tensor, pairs: Pairs | None = None, *, position_bias: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return tokens (B, N, D) after attention, projected; `pairs` as in the class's docstring.

        position_bias: returns, in the place of the table, what is added to the scores, (heads, N, N) or
        (B, heads, N, N), for queries (B, heads, N, D / heads).
        """
        query, key, value = self._split(tokens)
        bias = self._bias(query, pairs) if position_bias is None else position_bias(query).to(query.dtype)
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":  # under autocast only the query has the dtype
            mixed = self._scores(query, key, bias).softmax(dim=-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        projected: Tensor = self.proj(rearrange(mixed, "b h n d -> b n (h d)"))
        return projected

    def probabilities(self, tokens: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Return attention probabilities (B, heads, N, N) of tokens (B, N, D), the weights of values in `forward`.

        Rows sum to 1. They are computed in float32 at least.
        """
        query, key, _ = self._split(tokens)
        if query.dtype in (torch.float16, torch.bfloat16):
            query, key = query.float(), key.float()
        return self._scores(query, key, self._bias(query, pairs)).softmax(dim=-1)

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, heads, N, D / heads), of tokens (B, N, D)."""
        query, key, value = rearrange(self.qkv(tokens), "b n (k h d) -> k b h n d", k=3, h=self.heads).unbind(0)
        return query, key, value

    def _scores(self, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        """Return scores (B, heads, N, N) before the softmax, of queries and keys (B, heads, N, D / heads)."""
        scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores if bias is None else scores + bias

    def _bias(self, query: Tensor, pairs: Pairs | None) -> Tensor | None:
        """Return the relative position bias (heads, N, N) or (B, heads, N, N) in the query's dtype, if there is one."""
        table = self.relative_position_bias_table
        return None if pairs is None or table is None else pairs.bias(table).to(query.dtype)


class Mlp(nn.Module):
    """Two linear layers with a GELU between, applied to each token of (B, N, D)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, N, D) of tokens (B, N, D)."""
        updated: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return updated


class LayerScale(nn.Module):
    """A learned factor for each channel, small at first, so that a branch begins near 0 (Touvron et al.)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, N, D) times the factors."""
        return tokens * self.gamma


def scale_of(width: int, initial: float | None) -> nn.Module:
    """Return the `LayerScale` of a branch, or an identity where `initial` is None."""
    return nn.Identity() if initial is None else LayerScale(width, initial)


class Block(nn.Module):
    """One pre-norm transformer block on tokens (B, N, D); `grid` and `pairs`: see `Attention`.

    layer_scale: initial factors of `LayerScale` on both branches, None for none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        grid: Size | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias, grid=grid)
        self.ls1 = scale_of(width, layer_scale)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls2 = scale_of(width, layer_scale)

    def forward(self, tokens: Tensor, drop_path_masks: Tensor | None = None, *, pairs: Pairs | None = None) -> Tensor:
        """Return tokens (B, N, D); `drop_path_masks` (B, 2) are factors of attention and MLP, 0 where dropped."""
        if drop_path_masks is None:
            tokens = tokens + self.ls1(self.attn(self.norm1(tokens), pairs))
            updated: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        else:
            attention, mlp = drop_path_masks[:, :, None, None].unbind(1)  # (B, 1, 1) each
            tokens = tokens + attention * self.ls1(self.attn(self.norm1(tokens), pairs))
            updated = tokens + mlp * self.ls2(self.mlp(self.norm2(tokens)))
        return updated

    def attention(self, tokens: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Return this block's attention (B, heads, N, N) of tokens (B, N, D); see `Attention.probabilities`."""
        return self.attn.probabilities(self.norm1(tokens), pairs)


def run_block(block: nn.Module, *inputs: Tensor, recompute: bool, **options: Any) -> Tensor:
    """Return what a block makes of its inputs; with `recompute` its backward pass computes its activations anew.

    Then only the inputs are kept between the passes. Gradients are the same.
    """
    if recompute and torch.is_grad_enabled():
        tokens: Tensor = checkpoint(block, *inputs, use_reentrant=False, **options)
    else:
        tokens = block(*inputs, **options)
    return tokens


def initialise(module: nn.Module) -> None:
    """Set one module's own weights as MAE does: Xavier-uniform weights, zero biases; for use with `Module.apply`.

    The patch convolution counts as the linear map it is. Class and mask tokens are drawn by their modules.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
