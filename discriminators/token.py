"""A discriminator on the tokens of the generator's own encoder."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm

from discriminators.contract import DiscriminatorOutput, check_pyramid


class TokenEncoder(Protocol):
    """A module from whole images (B, C, H, W) in [0, 1] to tokens (B, 1+L, width), class token first, then patches."""

    width: int
    patch_size: int


class Token(nn.Module):
    """Discriminator on the tokens of the generator's encoder: for each patch a logit, real or reconstructed.

    Masked Auto-Encoders Meet Generative Adversarial Networks and Beyond (GAN-MAE, Fei et al. 2023): both networks have
    one trunk. Whole images go through the encoder as it now is, and a head that all patches share (LayerNorm, linear,
    GELU, linear) gives each token a logit: logits (B, rows, columns), for `losses.adversarial.targets: position`. The
    features are the head's hidden map (B, hidden, rows, columns).

    Only the head is trained here. The gradient to the image passes through the trunk, whose weights and buffers are
    constants in it: they are neither parameters nor state of the discriminator. Its loss never reaches them, the
    generator's adversarial term only through the reconstruction. The original also trains the trunk by the
    discriminator's loss, a gradient that would have to join the generator's across micro-batches and processes.

    encoder: the generator's (`TokenEncoder`). It moves and changes with the generator, never with this module; a deep
    copy of this module reads the same one.

    Options:
        hidden: width of the head's hidden layer [ours]
        norm: "spectral" on the head's linear layers, or "none" [ours]

    Raises ValueError for options out of range and for images that the encoder's patches do not tile.
    """

    def __init__(
        self,
        encoder: nn.Module,
        resolutions: Sequence[tuple[int, int]],
        channels: int,
        *,
        hidden: int = 256,
        norm: Literal["spectral", "none"] = "none",
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"token needs a hidden layer of width 1 or more, not {hidden}")
        if norm not in ("spectral", "none"):
            raise ValueError(f"unknown norm {norm!r} of token; choose from: spectral, none")
        self.levels = 1
        self.resolutions, self.channels = tuple(resolutions), channels
        self._trunk = (encoder,)  # in a tuple it is no module of this one
        (height, width), sizes = self.resolutions[0], cast(TokenEncoder, encoder)
        if height % sizes.patch_size or width % sizes.patch_size:
            raise ValueError(f"token needs images that patches of {sizes.patch_size} tile, not {height}x{width}")
        self.grid = (height // sizes.patch_size, width // sizes.patch_size)
        normed = spectral_norm if norm == "spectral" else nn.Identity()
        self.hidden = nn.Sequential(nn.LayerNorm(sizes.width), normed(nn.Linear(sizes.width, hidden)), nn.GELU())
        self.out = normed(nn.Linear(hidden, 1))

    @property
    def encoder(self) -> nn.Module:
        """The generator's encoder, with its live weights."""
        return self._trunk[0]

    def forward(self, pyramid: Sequence[Tensor]) -> DiscriminatorOutput:
        """Return raw logits (B, rows, columns) and one map (B, hidden, rows, columns); pyramid[0]: (B, C, H, W)."""
        check_pyramid("token", pyramid, self.resolutions, self.channels, self.levels)
        hidden = self.hidden(self._tokens(pyramid[0])[:, 1:])
        logits = self.out(hidden).squeeze(-1).unflatten(1, self.grid)
        return DiscriminatorOutput(logits, (hidden.transpose(1, 2).unflatten(2, self.grid),))

    def _tokens(self, images: Tensor) -> Tensor:
        """Return the tokens (B, 1+L, D) of whole images, as a function of the images alone."""
        constants = {name: value.detach() for name, value in _tensors(self.encoder).items()}
        # Of attention's kernels, this one can be differentiated twice (R1, path length).
        differentiated = images.requires_grad and torch.is_grad_enabled()
        with sdpa_kernel(SDPBackend.MATH) if differentiated else nullcontext():
            tokens: Tensor = functional_call(self.encoder, constants, (images,))
        return tokens.to(next(self.parameters()).dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Token":
        """Return a copy with a head of its own and the same trunk, or the trunk's copy if that was made first."""
        memo.setdefault(id(self.encoder), self.encoder)
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
