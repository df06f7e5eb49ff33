"""NVIDIA's published discriminator: its names and shapes, and its formulas read directly."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def to_four(side: int) -> list[tuple[int, int]]:
    return [(side >> level, side >> level) for level in range(side.bit_length() - 2)]


def nvidia_shapes(side: int, base: int, architecture: str, most: int = 512) -> dict[str, tuple[int, ...]]:
    """Return names and shapes in the published order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    sides = [res for res, _ in to_four(side)]
    for res in sides[:-1]:
        width, after = min(base // res, most), min(base // (res // 2), most)
        if res == side or architecture == "skip":
            layer(f"b{res}.fromrgb", width, 3, 1, 1)
        layer(f"b{res}.conv0", width, width, 3, 3)
        layer(f"b{res}.conv1", after, width, 3, 3)
        if architecture == "resnet":
            layer(f"b{res}.skip", after, width, 1, 1, bias=False)
    width = min(base // 4, most)
    if architecture == "skip":
        layer("b4.fromrgb", width, 3, 1, 1)
    layer("b4.conv", width, width + 1, 3, 3)
    layer("b4.fc", width, 16 * width)
    layer("b4.out", 1, width)
    return shapes


def nvidia_state(side: int, base: int, architecture: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = nvidia_shapes(side, base, architecture)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def nvidia_forward(state: dict[str, Tensor], images: Tensor, architecture: str) -> Tensor:
    """Return logits (B, 1) of images in [-1, 1]: every formula in its plainest form."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=images.dtype)
    fir = row[:, None] * row[None, :] / 64

    def filtered(x: Tensor, padding: int, stride: int) -> Tensor:
        kernel = fir.repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(F.pad(x, [padding] * 4), kernel, stride=stride, groups=x.shape[1])

    def weight(name: str) -> Tensor:
        w = state[f"{name}.weight"]
        return w / math.sqrt(w[0].numel())

    def act(x: Tensor, name: str, gain: float = 1.0) -> Tensor:
        bias = state[f"{name}.bias"]
        x = x + bias.view(1, -1, *[1] * (x.ndim - 2))
        return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2) * gain

    x, side = None, images.shape[-1]
    for res, _ in to_four(side):
        if f"b{res}.fromrgb.weight" in state:
            rgb = act(F.conv2d(images, weight(f"b{res}.fromrgb")), f"b{res}.fromrgb")
            x = rgb if x is None else x + rgb
        if architecture == "skip":
            images = filtered(images, 1, 2)
        if res == 4:
            break
        conv0, conv1, skip = f"b{res}.conv0", f"b{res}.conv1", f"b{res}.skip"
        half = math.sqrt(0.5) if architecture == "resnet" else 1.0
        y = act(F.conv2d(x, weight(conv0), padding=1), conv0)
        y = act(F.conv2d(filtered(y, 2, 1), weight(conv1), stride=2), conv1, half)
        x = y + F.conv2d(filtered(x, 1, 2), weight(skip)) * half if architecture == "resnet" else y

    batch, _, height, width = x.shape
    group = max(size for size in (1, 2, 3, 4) if batch % size == 0)
    maps = torch.zeros(batch, 1, height, width, dtype=x.dtype)
    for first in range(batch // group):
        members = x[first :: batch // group]
        deviation = ((members - members.mean(0)) ** 2).mean(0).add(1e-8).sqrt().mean()
        maps[first :: batch // group] = deviation
    x = act(F.conv2d(torch.cat([x, maps], 1), weight("b4.conv"), padding=1), "b4.conv")
    x = act(x.flatten(1) @ weight("b4.fc").T, "b4.fc")
    return x @ weight("b4.out").T + state["b4.out.bias"]
