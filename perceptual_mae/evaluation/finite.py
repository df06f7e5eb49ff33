"""The one check of what a network gives for images: scores and pictures of NaN would look like any others."""

from torch import Tensor

from perceptual_mae.errors import UserError


def check_finite(values: Tensor, what: str) -> Tensor:
    """Return the values (B, ...), one row an image; raise UserError unless all are finite. Waits for the device."""
    finite = values.isfinite()
    if not bool(finite.all()):
        bad = int((~finite.flatten(1).all(1)).sum())
        raise UserError(
            f"{what} of {bad} of {len(values)} images are not finite: the weights are damaged, or training has "
            "diverged; score an earlier checkpoint (RUN/checkpoints/step_...), or train again with a lower optimizer.lr"
        )
    return values
