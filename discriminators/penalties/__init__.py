"""Penalties of a discriminator and of the path to its features, usable alone: `PENALTIES[name](size, batch_size)`."""

from collections.abc import Callable

from discriminators.penalties.batch_share import check_batch_share, share_of_images
from discriminators.penalties.input_gradients import R1, R2, auto_gamma, gradient_penalty, leaves_of, r1
from discriminators.penalties.le_cam import LeCam, lecam
from discriminators.penalties.path import PathLength, lazy_adam, path_length, path_lengths, path_noise

PENALTIES: dict[str, Callable[..., R1] | Callable[..., R2] | Callable[..., LeCam] | Callable[..., PathLength]] = {
    "r1": R1,
    "r2": R2,
    "lecam": LeCam,
    "path_length": PathLength,
}

__all__ = [
    "PENALTIES",
    "R1",
    "R2",
    "LeCam",
    "PathLength",
    "auto_gamma",
    "check_batch_share",
    "gradient_penalty",
    "lazy_adam",
    "leaves_of",
    "lecam",
    "path_length",
    "path_lengths",
    "path_noise",
    "r1",
    "share_of_images",
]
