"""Sections of loss networks: those that terms compare through, and frozen ones that discriminators are made of."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import SerializeAsAny
from torch import nn

from perceptual_mae.config.from_signature import Choice, choice, first_parameter
from perceptual_mae.loss_networks import LIVE, LOSS_NETWORKS


class LossNetworkSection(Choice):
    """The network through which a term compares fake and real, with its options.

    Options:
        kind: the network whose features are compared [paper]
    """

    @property
    def reads_discriminator(self) -> bool:
        """Whether it is the run's discriminator, or made of it."""
        return self.asks_for("discriminator")


ANY_NETWORK = choice(LossNetworkSection, LOSS_NETWORKS, "loss network", LIVE)

FROZEN_NETWORKS = {kind: make for kind, make in LOSS_NETWORKS.items() if first_parameter(make) != "discriminator"}
"""Those that no discriminator is needed for: one may be made of them."""

DEFAULT_FROZEN = "named"
"""The kind of a frozen network where none is named."""


class FrozenNetworkSection(Choice):
    """A frozen network whose features a discriminator reads, with its options; `named` where no kind is stated.

    Options:
        kind: the network whose features are read [none]
    """


_FROZEN = choice(FrozenNetworkSection, FROZEN_NETWORKS, "frozen network", DEFAULT_FROZEN)


class MadeOfNetworks(Choice):
    """A section whose class may ask for frozen networks: in a file, its options of type `nn.Module` are their sections.

    They are built as loss networks are, for images of the largest size.
    """

    types_in_files: ClassVar[Mapping[type, Any]] = {nn.Module: Annotated[SerializeAsAny[FrozenNetworkSection], _FROZEN]}

    def build(self, *positional: Any) -> Any:
        """Call the constructor with resolutions and channels, and the options, networks built."""
        (size, *_), channels = positional
        options = {
            name: option.build(size, channels) if isinstance(option, FrozenNetworkSection) else option
            for name, option in self.options().items()
        }
        return self.constructor(*positional, **options)
