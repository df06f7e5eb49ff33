"""Decoder blocks whose tokens attend to visible patches and never to each other (CrossMAE).

Shapes: B images, N query tokens, M key tokens, d decoder width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from perceptual_mae.generator.vit import LayerNorm, Mlp, scale_of


class CrossAttention(nn.Module):
    """Multi-head attention of tokens (B, N, d) to others (B, M, d); kernels are chosen as in `vit.Attention`."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, keys: Tensor) -> Tensor:
        """Return (B, N, d) from queries of tokens (B, N, d), keys and values of others (B, M, d)."""
        query = rearrange(self.q(tokens), "b n (h d) -> b h n d", h=self.heads)
        key, value = rearrange(self.kv(keys), "b m (k h d) -> k b h m d", k=2, h=self.heads).unbind(0)
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":  # faster than the fused kernel there
            mixed = ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(rearrange(mixed, "b h n d -> b n (h d)"))
        return projected


class CrossBlock(nn.Module):
    """One pre-norm block on tokens (B, N, d): attention to visible tokens (B, M, d), normalised here, then an MLP.

    qkv_bias and layer_scale are those of `vit.Block`.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, qkv_bias: bool = True, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.norm_visible = LayerNorm(width)
        self.attn = CrossAttention(width, heads, qkv_bias=qkv_bias)
        self.ls1 = scale_of(width, layer_scale)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls2 = scale_of(width, layer_scale)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Return tokens (B, N, d) after attention to visible tokens (B, M, d), and MLP."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), self.norm_visible(visible)))
        updated: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return updated
