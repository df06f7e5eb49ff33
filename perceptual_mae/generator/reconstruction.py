"""The generator's output. Shapes: B images, C channels, L patches, V visible patches, D and d widths."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perceptual_mae.images import Pyramid, Size, composite, mask_image


@dataclass(frozen=True)
class Reconstruction:
    """The generator's output for a batch; all tensors are attached to the graph.

    pyramid: images on the [0, 1] scale, largest first, float32, not clamped. prediction: the same in the space of
    `MaskedAutoencoder.target`. mask: (B, L), True = hidden. tokens: the encoder's output (B, 1+V, D) for V visible
    patches (for all, if the encoder has mask tokens). latent: the decoder's input (B, 1+L, d), where skips have not
    joined yet. grid: rows and columns of patches. encoded: all that the decoder reads of the encoder, its output and
    the tokens of skips, each as the decoder alone reads it: no part depends on another. uses_target_statistics: whether
    `pyramid` uses the mean and standard deviation of the true patches (norm_pix).
    """

    pyramid: Pyramid
    prediction: Pyramid
    mask: Tensor
    tokens: Tensor
    latent: Tensor
    grid: Size
    encoded: tuple[Tensor, ...] = ()
    uses_target_statistics: bool = False

    def keep_from_encoder(self, loss: Tensor) -> None:
        """Let the backward pass to come bring the encoder the gradient of a scalar `loss` alone, whatever it is of."""
        encoded = [tensor for tensor in self.encoded if tensor.requires_grad]  # none where the encoder is frozen
        if not encoded:
            return
        gradients = torch.autograd.grad(loss, encoded, retain_graph=True, allow_unused=True, materialize_grads=True)
        for tensor, gradient in zip(encoded, gradients, strict=True):
            tensor.register_hook(lambda _, gradient=gradient: gradient)  # type: ignore[no-untyped-call]

    def composite(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) whose visible patches are those of `images` and whose hidden ones are reconstructed."""
        fake = self.pyramid[0].to(images.dtype)
        hidden = mask_image(self.mask, self.grid, (images.shape[-2], images.shape[-1])).to(images.dtype)
        return composite(images, fake, hidden)
