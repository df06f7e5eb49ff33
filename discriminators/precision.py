"""The precision in which penalties and augmentations compute, under autocast too."""

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Return a tensor of any shape in float32, or in its own type where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
