"""Where the weights of metric networks lie: wherever `pmae weights list` finds them."""

from pathlib import Path

from perceptual_mae.evaluation.metrics.protocol import UnavailableError
from perceptual_mae.pretrained_weights.registry import find, missing


def find_weights(name: str) -> Path:
    """Return the file of a network's weights; UnavailableError says which command fetches it."""
    path = find(name)
    if path is None:
        raise UnavailableError(missing(name))
    return path
