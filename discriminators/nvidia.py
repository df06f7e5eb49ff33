"""Weights of NVIDIA's published StyleGAN2 discriminators under our names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

_NAME = re.compile(r"b(\d+)\.(fromrgb|conv0|conv1|skip|conv|fc|out)\.(weight|bias)")


def is_nvidias(names: Iterable[str]) -> bool:
    """Tell whether some of the names are those of NVIDIA's StyleGAN2 discriminators."""
    return any(_NAME.fullmatch(name) for name in names)


def options_of(state: Mapping[str, Tensor]) -> tuple[int, dict[str, Any]]:
    """Return the side of the images that NVIDIA's discriminator reads, and the options with which ours has its tensors.

    state: as `from_nvidia` takes it.
    """
    parts = [part for name in state if (part := _NAME.fullmatch(name))]
    sides = sorted({int(part[1]) for part in parts}, reverse=True)
    inputs = sum(part[2] == "fromrgb" and part[3] == "weight" for part in parts)
    biases = {side: state.get(f"b{side}.{'conv' if side == sides[-1] else 'conv0'}.bias") for side in sides}
    widths = {side: bias.numel() for side, bias in biases.items() if bias is not None}
    return sides[0], {
        "input": "single",
        "architecture": "resnet" if any(part[2] == "skip" for part in parts) else "skip" if inputs > 1 else "orig",
        "channel_base": sides[0] * widths.get(sides[0], 0),
        "max_channels": max(widths.values(), default=0),
        "stem": "plain",
    }


def from_nvidia(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict for `StyleGAN2(resolutions, channels, input="single")` from that of NVIDIA's discriminator.

    state: names such as b256.fromrgb.weight or b4.out.bias, the largest level first or in any order; the constant
    `resample_filter` buffers are dropped. Both read RGB images, theirs in [-1, 1], ours in [0, 1]; their guard for half
    precision, which clamps maps to +-256, is not in ours. Load the result with `load_state_dict`, which checks all
    shapes. Raises ValueError for names of another network, among them the label mapping of a class-conditional one.
    """
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith("resample_filter")}
    parts = {name: _NAME.fullmatch(name) for name in tensors}
    foreign = [name for name, part in parts.items() if part is None]
    if foreign or not parts:
        raise ValueError(
            "not a state dict of NVIDIA's unconditional StyleGAN2 discriminator (b256.fromrgb.weight ... b4.out.bias): "
            f"it holds {', '.join(foreign[:3]) or 'nothing'}"
        )
    sides = sorted({int(part[1]) for part in parts.values() if part}, reverse=True)
    ours = {side: f"blocks.{index}" for index, side in enumerate(sides[:-1])} | {sides[-1]: "epilogue"}
    return {
        f"{ours[int(part[1])]}.{part[2].replace('fromrgb', 'from_rgb')}.{part[3]}": tensors[name]
        for name, part in parts.items()
        if part
    }
