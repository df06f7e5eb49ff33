"""Tensors of the CPU on the device of the images they are for."""

import torch
from torch import Tensor


def like(tensor: Tensor, images: Tensor) -> Tensor:
    """Return a tensor of the CPU in the dtype and on the device of `images`; see `on_device`."""
    return on_device(tensor.to(images.dtype), images.device)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; the host does not wait until a GPU has copied it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
