"""The images of one forward and backward pass, with all that is drawn for them."""

from dataclasses import dataclass

from torch import Tensor

from perceptual_mae.objective.discriminator_input import ShownPart


@dataclass
class MicroBatch:
    """Images (B, C, H, W) in [0, 1] on the device, their masks (B, L) and sample indices (B,) on the CPU.

    share: what its losses count for in the step's. drop_path_masks: (B, blocks, 2), None where every branch of the
    encoder is open. shown: which of the images the discriminator is shown, None for all of each. real_signs: signs of
    the discriminator's real logits, added up for ADA's controller (`sign_sums`).
    """

    images: Tensor
    mask: Tensor
    indices: Tensor
    share: float = 1.0
    drop_path_masks: Tensor | None = None
    shown: ShownPart | None = None
    real_signs: Tensor | None = None

    @property
    def shown_indices(self) -> Tensor:
        """Sample indices of the images that the discriminator is shown, the first ones."""
        return self.indices if self.shown is None else self.indices[: self.shown.num_images]
