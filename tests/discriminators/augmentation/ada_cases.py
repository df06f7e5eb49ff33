"""Draws made by hand for the tests of adaptive augmentation."""

import hashlib
from dataclasses import replace
from typing import Any

import torch

from discriminators.augmentation.draws import Draws, draw


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    seeds = [hashlib.blake2b(f"{seed} {index}".encode(), digest_size=7).digest() for index in range(count)]
    return [torch.Generator().manual_seed(int.from_bytes(digest, "little")) for digest in seeds]


def only(count: int = 1, **operations: Any) -> Draws:
    """Draws that do nothing to `count` images but the given operations, the same to all."""
    neutral = draw(generators(count), 0.0, "bgcfnc")
    changed = {}
    for name, value in operations.items():
        like = getattr(neutral, name)
        changed[name] = torch.tensor(value, dtype=like.dtype).expand_as(like).clone()
    return replace(neutral, **changed)


def photo_like(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images in [0, 1], float64: most of their power lies at low frequencies, as a photograph's does."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for _ in range(6):
        padded = torch.nn.functional.pad(noise, (1, 1, 1, 1), mode="reflect")
        noise = torch.nn.functional.avg_pool2d(padded, 3, stride=1)
    return (noise - noise.amin()) / (noise.amax() - noise.amin())
