"""What the terms of an objective may look at, computed only when somebody looks."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from discriminators import DiscriminatorOutput
from perceptual_mae.generator.masked_autoencoder import Reconstruction
from perceptual_mae.images import Pyramid, Size
from perceptual_mae.loss_networks import LIVE, Eyes, Features
from perceptual_mae.losses import FEATURES


class TermInputs:
    """Real and fake side by side, with what the discriminator and other loss networks make of both.

    Images are pyramids in [0, 1], largest first. `prediction` and `target` are the same pyramids in the space the
    generator predicts in (normalised, and per patch under `norm_pix`). The discriminator's outputs, the real pyramids
    and what other networks see (`eyes`, by key) are functions called at first use, once: no network runs that no
    active term reads, and terms that know the same network share its passes.
    """

    def __init__(
        self,
        reconstruction: Reconstruction,
        real: Callable[[], Pyramid],
        target: Callable[[], Pyramid],
        on_fake: Callable[[], DiscriminatorOutput] | None = None,
        on_real: Callable[[], DiscriminatorOutput] | None = None,
        eyes: Eyes | None = None,
    ) -> None:
        self.reconstruction = reconstruction
        self._eyes, self._seen = eyes or {}, dict[tuple[str, str], Features]()
        self._real, self._target, self._on_fake, self._on_real = real, target, on_fake, on_real

    def read(self, field: str, network: str = LIVE) -> Any:
        """Return a field by name; features are those that the loss network of that key finds."""
        if network == LIVE or field not in FEATURES:
            return getattr(self, field)
        if (network, field) not in self._seen:
            if field == "fake_features":
                self._seen[network, field] = self._eyes[network](self.fake)
            else:
                with torch.no_grad():  # what the fake is compared with is never differentiated
                    self._seen[network, field] = self._eyes[network](self.real)
        return self._seen[network, field]

    @property
    def fake(self) -> Pyramid:
        return self.reconstruction.pyramid

    @property
    def prediction(self) -> Pyramid:
        return self.reconstruction.prediction

    @property
    def mask(self) -> Tensor:
        return self.reconstruction.mask

    @property
    def grid(self) -> Size:
        return self.reconstruction.grid

    @property
    def tokens(self) -> Tensor:
        return self.reconstruction.tokens

    @property
    def latent(self) -> Tensor:
        return self.reconstruction.latent

    @cached_property
    def real(self) -> Pyramid:
        return self._real()

    @cached_property
    def target(self) -> Pyramid:
        return self._target()

    @cached_property
    def on_fake(self) -> DiscriminatorOutput:
        assert self._on_fake is not None, "a term reads the discriminator, but there is none"
        return self._on_fake()

    @cached_property
    def on_real(self) -> DiscriminatorOutput:
        assert self._on_real is not None, "a term reads the discriminator, but there is none"
        return self._on_real()

    @property
    def fake_logits(self) -> Tensor:
        return self.on_fake.logits

    @property
    def fake_features(self) -> tuple[Tensor, ...]:
        return self.on_fake.features

    @property
    def real_features(self) -> tuple[Tensor, ...]:
        return self.on_real.features
