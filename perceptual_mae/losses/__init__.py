"""Loss terms, one family a file: pure functions from tensors to a scalar.

They compute in float32 (float64 if given), under autocast too. Tensors are positional and options keyword-only. A loss
takes tensors, never networks, and imports no other loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from perceptual_mae.losses.adversarial import adversarial_generator, unread_by_generator
from perceptual_mae.losses.frequency import high_frequency
from perceptual_mae.losses.ms_ssim import ms_ssim
from perceptual_mae.losses.perceptual import feature_matching, style
from perceptual_mae.losses.pixel import l1, mse
from perceptual_mae.losses.uniformity import uniformity

FEATURES = ("fake_features", "real_features")
"""The fields that depend on a term's loss network."""
LOGITS = ("fake_logits", "real_logits")
"""The fields that a discriminator makes."""
FIELDS = ("prediction", "target", "fake", "real", "mask", "grid", "tokens", "latent", *FEATURES, *LOGITS)
"""All that a term may read."""


@dataclass(frozen=True)
class Term:
    """A loss function and the fields of a TermInputs it is called with, in order."""

    function: Callable[..., Tensor]
    reads: tuple[str, ...]
    unread: Callable[[Mapping[str, object]], frozenset[str]] = lambda options: frozenset()
    """Which of the last of these fields, all optional, some options leave unread."""

    @property
    def reads_features(self) -> bool:
        """Whether the term compares features of a loss network, the discriminator or another."""
        return not set(self.reads).isdisjoint(FEATURES)

    @property
    def reads_logits(self) -> bool:
        """Whether the term needs a discriminator's logits."""
        return not set(self.reads).isdisjoint(LOGITS)

    @property
    def compares_images(self) -> bool:
        """Whether the term reads images (or features of them), not only normalised predictions."""
        return not set(self.reads) <= {"prediction", "target", "mask", "grid", "tokens", "latent"}

    @property
    def acts_through_decoder(self) -> bool:
        """Whether its gradient passes through the decoder's input, where weights are balanced."""
        return not set(self.reads) <= {"tokens", "mask", "grid"}


TERMS: dict[str, Term] = {
    "l1": Term(l1, reads=("prediction", "target", "mask", "grid")),
    "mse": Term(mse, reads=("prediction", "target", "mask", "grid")),
    "high_frequency": Term(high_frequency, reads=("fake", "real", "mask", "grid")),
    "ms_ssim": Term(ms_ssim, reads=("fake", "real")),
    "feature_matching": Term(feature_matching, reads=("fake_features", "real_features")),
    "style": Term(style, reads=("fake_features", "real_features")),
    "adversarial": Term(
        adversarial_generator, reads=("fake_logits", "real_logits", "mask", "grid"), unread=unread_by_generator
    ),
    "uniformity": Term(uniformity, reads=("tokens",)),
}
"""name -> loss function and the fields that it is called with; one line a term."""
