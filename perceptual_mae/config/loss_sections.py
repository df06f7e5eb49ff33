"""Sections of the terms of an objective: the table's and those of one's own, and the networks they compare through."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, RootModel, SerializeAsAny
from torch import Tensor

from perceptual_mae.config.errors import RejectedError
from perceptual_mae.config.from_signature import Choice, Options, choice, derive
from perceptual_mae.config.mistake import Mistake
from perceptual_mae.config.own_kinds import Trust, import_own_term, positional_names, untrusted
from perceptual_mae.loss_networks import LIVE, LOSS_NETWORKS
from perceptual_mae.losses import FIELDS, TERMS, Term
from perceptual_mae.objective.gradient_balance import RECONSTRUCTION
from perceptual_mae.objective.objective import Reach
from perceptual_mae.schedules import Weight, When


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


class TermSection(Options):
    """One term of the objective: its weight, its phase, and the options of its function.

    Options:
        weight: weight in the objective: a number, a ramp, or a balanced share of L1's gradient [ours]
        when: the steps in which the term counts: always, even_epochs, odd_epochs, {from_epoch: n}, {from_share: x},
            {every: n} [ours]
        reach: what of the generator the term's gradient reaches: all of it, or the decoder alone [ours]
    """

    weight: Weight = 1.0
    when: When = "always"
    reach: Reach = "all"


_LIVE: Any = {"kind": LIVE}


class FeatureTermSection(TermSection):
    """A term that compares features of fake and real images.

    Options:
        network: the network whose features are compared [paper]
    """

    model_config = ConfigDict(validate_default=True)

    network: Annotated[SerializeAsAny[LossNetworkSection], ANY_NETWORK] = _LIVE


class OwnTermSection(TermSection):
    """A term of one's own: a function whose positional parameters are the fields it reads.

    Options:
        kind: your function, package.module:function [none]
    """

    kind: str


class OwnFeatureTermSection(FeatureTermSection):
    """A term of one's own that compares features.

    Options:
        kind: your function, package.module:function [none]
    """

    kind: str


def term_model(name: str) -> type[TermSection]:
    """Return the section of a term of the table."""
    return derive(FeatureTermSection if TERMS[name].reads_features else TermSection, TERMS[name].function)


def own_term_model(name: str, kind: str, trust: Trust) -> type[TermSection]:
    """Return the section of a term of one's own; RejectedError where its name or its function will not do."""
    if not name.isidentifier() or name == RECONSTRUCTION:
        raise RejectedError([Mistake(("",), "a term of your own needs a plain word as its name, such as my_term")])
    if not trust.allows(kind):
        return untrusted(OwnTermSection, kind, f"loss term {name}", trust.source)
    try:
        function = import_own_term(kind, FIELDS)
        features = own_term(function).reads_features
        return derive(OwnFeatureTermSection if features else OwnTermSection, function, kind)
    except (ValueError, TypeError, NameError) as error:
        raise RejectedError([Mistake(("kind",), str(error))]) from error


def own_term(function: Callable[..., Tensor]) -> Term:
    """Return the term of a function of one's own, which reads the fields that its positional parameters are called."""
    return Term(function, tuple(name for name in positional_names(function) or () if name in FIELDS))


class LossesSection(RootModel[dict[str, SerializeAsAny[TermSection]]]):
    """The terms of the objective by name, in the order of the file."""

    model_config = ConfigDict(frozen=True)
    names: ClassVar[Mapping[str, object]] = TERMS

    def items(self) -> Iterator[tuple[str, TermSection]]:
        return iter(self.root.items())

    def __contains__(self, name: str) -> bool:
        return name in self.root

    def __getitem__(self, name: str) -> TermSection:
        return self.root[name]

    def term(self, name: str) -> Term:
        """Return the term of an entry: the table's, or one's own."""
        return TERMS[name] if name in TERMS else own_term(self.root[name].constructor)

    def networks(self) -> dict[str, LossNetworkSection]:
        """Return, by term, the networks through which terms compare."""
        return {name: term.network for name, term in self.items() if isinstance(term, FeatureTermSection)}

    def discriminator_readers(self) -> list[str]:
        """Name the terms that need a discriminator: its logits, or features of it or of its copy."""
        readers = {name for name, network in self.networks().items() if network.reads_discriminator}
        return [name for name in self.root if self.term(name).reads_logits or name in readers]
