"""What the terms of an objective may read; what costs something is computed at its first use, once."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from discriminators import DiscriminatorOutput
from perceptual_mae.generator.reconstruction import Reconstruction
from perceptual_mae.images import Pyramid, pyramid
from perceptual_mae.loss_networks import LIVE, FeatureExtractors, Features


class TermInputs:
    """Real and fake images, and what the discriminator and other loss networks make of both.

    images: (B, C, H, W) in [0, 1]. `real` and `fake` are pyramids in [0, 1], largest first; `prediction` and `target`
    are the same in the space the generator predicts in (normalised, and per patch under `norm_pix`); `target(images,
    levels)` makes the latter. The discriminator's outputs are given where an active term reads them; features of other
    networks come from `extractors`, by the network's key, and terms that share a network share its passes. Nothing that
    the fake is compared with is differentiated.
    """

    def __init__(
        self,
        images: Tensor,
        reconstruction: Reconstruction,
        target: Callable[[Tensor, int], Pyramid],
        real_output: DiscriminatorOutput | None = None,
        fake_output: DiscriminatorOutput | None = None,
        extractors: FeatureExtractors | None = None,
    ) -> None:
        self._images, self._target = images, target
        self.fake, self.prediction = reconstruction.pyramid, reconstruction.prediction
        self.mask, self.grid = reconstruction.mask, reconstruction.grid
        self.tokens, self.latent = reconstruction.tokens, reconstruction.latent
        self._features: dict[tuple[str, str], Features] = {}
        self.real_logits = real_output.logits.detach() if real_output is not None else None
        if fake_output is not None:
            self.fake_logits = fake_output.logits
            self._features[LIVE, "fake_features"] = fake_output.features
        if real_output is not None:
            self._features[LIVE, "real_features"] = tuple(feature.detach() for feature in real_output.features)
        self._extractors = extractors or {}

    @cached_property
    def real(self) -> Pyramid:
        """The original as a pyramid of as many levels as the fake's."""
        return pyramid(self._images, len(self.fake))

    @cached_property
    def target(self) -> Pyramid:
        """The original in the space of `prediction`."""
        return self._target(self._images, len(self.fake))

    def features(self, field: str, network: str = LIVE) -> Features:
        """Return `fake_features` or `real_features`, maps (B, C_j, H_j, W_j), of the loss network of that key."""
        if (network, field) not in self._features:
            if field == "fake_features":
                self._features[network, field] = self._extractors[network](self.fake)
            else:
                with torch.no_grad():
                    self._features[network, field] = self._extractors[network](self.real)
        return self._features[network, field]
