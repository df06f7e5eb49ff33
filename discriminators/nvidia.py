"""Weights of NVIDIA's published StyleGAN2 discriminators under our names."""

import re
from collections.abc import Mapping

from torch import Tensor

_NAME = re.compile(r"b(\d+)\.(fromrgb|conv0|conv1|skip|conv|fc|out)\.(weight|bias)")


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
