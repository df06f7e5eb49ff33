"""Named sizes of the generator."""

from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import Field

Width = Annotated[int, Field(ge=1, le=16384)]
"""Channels of tokens; far beyond any published network, so that nothing overflows on the way to a refusal."""
Depth = Annotated[int, Field(ge=1, le=256)]
Heads = Annotated[int, Field(ge=1, le=1024)]
PatchSize = Annotated[int, Field(ge=1, le=1024)]
MlpRatio = Annotated[float, Field(ge=1, le=64)]


@dataclass(frozen=True)
class Architecture:
    """Widths, depths and heads of encoder and decoder; patch size in pixels; width of an MLP relative to its block's.

    Raises ValueError for values no network can be built from, named as in a configuration file.
    """

    width: int
    depth: int
    heads: int
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    patch_size: int = 16
    mlp_ratio: float = 4.0
    decoder_mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise ValueError(f"generator.{field.name} must be at least 1, got {value}")
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}width"), getattr(self, f"{prefix}heads")
            if width % 4 or width % heads:
                raise ValueError(
                    f"generator.{prefix}width {width} must be a multiple of 4 and of generator.{prefix}heads {heads}"
                )


SIZES: dict[str, Architecture] = {
    "tiny": Architecture(
        192, 12, 3, 192, 6, 3
    ),  # decoders of tiny and small are ours: MAE's would outweigh the encoder
    "small": Architecture(384, 12, 6, 256, 6, 8),
    "base": Architecture(768, 12, 12),
    "large": Architecture(1024, 24, 16),
    "huge": Architecture(1280, 32, 16, patch_size=14),
}
