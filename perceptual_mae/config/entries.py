"""The sections of named entries: `losses`, a term of the objective each, and `penalties`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, RootModel, SerializeAsAny
from pydantic.json_schema import JsonSchemaValue

from discriminators import PENALTIES
from perceptual_mae.config.errors import RejectedError
from perceptual_mae.config.from_signature import Choice, Options, choice, derive, read_as
from perceptual_mae.config.mistake import Mistake, unknown_entry
from perceptual_mae.loss_networks import LIVE, LOSS_NETWORKS, reads_discriminator
from perceptual_mae.losses import TERMS
from perceptual_mae.schedules import Weight, When


class PenaltySection(Options):
    """Options of one gradient penalty."""


class TermSection(Options):
    """One term of the objective: its weight, its phase, and the options of its function.

    Options:
        weight: weight in the objective: a number, a ramp, or a balanced share of L1's gradient [ours]
        when: the steps in which the term counts: always, even_epochs, odd_epochs, {from_epoch: n}, {every: n} [ours]
    """

    weight: Weight = 1.0
    when: When = "always"


class LossNetworkSection(Choice):
    """The network through which a term compares fake and real, with its options.

    Options:
        kind: the network whose features are compared [paper]
    """

    @property
    def reads_discriminator(self) -> bool:
        """Whether it is the run's discriminator, or made of it."""
        return reads_discriminator(type(self).constructor)


_NETWORK = choice(LossNetworkSection, LOSS_NETWORKS, "loss network", LIVE)
_LIVE: Any = {"kind": LIVE}


class FeatureTermSection(TermSection):
    """A term that compares features of fake and real images.

    Options:
        network: the network whose features are compared [paper]
    """

    model_config = ConfigDict(validate_default=True)

    network: Annotated[SerializeAsAny[LossNetworkSection], _NETWORK] = _LIVE


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

    def networks(self) -> dict[str, LossNetworkSection]:
        """Return, by term, the networks through which terms compare."""
        return {name: term.network for name, term in self.items() if isinstance(term, FeatureTermSection)}

    def discriminator_readers(self) -> list[str]:
        """Name the terms that need a discriminator: its logits, or features of it or of its copy."""
        watching = {name for name, network in self.networks().items() if network.reads_discriminator}
        return [name for name in self.root if TERMS[name].reads_logits or name in watching]


class PenaltiesSection(RootModel[dict[str, SerializeAsAny[PenaltySection]]]):
    """The gradient penalties by name."""

    model_config = ConfigDict(frozen=True)
    names: ClassVar[Mapping[str, object]] = PENALTIES

    def get(self, name: str) -> PenaltySection | None:
        return self.root.get(name)


def read_terms(values: Mapping[str, Any]) -> dict[str, TermSection]:
    """Read each term with the options of its function; a number is a weight for short, null removes a term."""
    sections, mistakes = {}, list[Mistake]()
    for name, value in values.items():
        try:
            if value is not None:
                sections[name] = _read_term(name, value)
        except RejectedError as rejected:
            mistakes += [mistake.under(name) for mistake in rejected.mistakes]
    if mistakes:
        raise RejectedError(mistakes)
    return sections


def _read_term(name: str, value: object) -> TermSection:
    if isinstance(value, TermSection):
        return value
    if name not in TERMS:
        raise RejectedError([unknown_entry("", name, "loss term", list(TERMS))])
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"weight": value}
    section: TermSection = read_as(term_model(name), value)
    return section


def term_model(name: str) -> type[TermSection]:
    return derive(FeatureTermSection if TERMS[name].reads_features else TermSection, TERMS[name].function)


def read_penalties(values: Mapping[str, Any]) -> dict[str, PenaltySection]:
    """Read each penalty with its options; null removes one."""
    sections, mistakes = {}, list[Mistake]()
    for name, value in values.items():
        try:
            if name not in PENALTIES:
                raise RejectedError([unknown_entry("", name, "penalty", list(PENALTIES))])
            if value is not None:
                sections[name] = read_as(derive(PenaltySection, PENALTIES[name]), value)
        except RejectedError as rejected:
            mistakes += [mistake.under(name) for mistake in rejected.mistakes]
    if mistakes:
        raise RejectedError(mistakes)
    return sections


def describe_penalties(show: Callable[[type[BaseModel]], JsonSchemaValue]) -> JsonSchemaValue:
    penalties = {name: show(derive(PenaltySection, kind)) for name, kind in PENALTIES.items()}
    return {"type": "object", "properties": penalties, "additionalProperties": False}


def describe_terms(show: Callable[[type[BaseModel]], JsonSchemaValue]) -> JsonSchemaValue:
    short: list[JsonSchemaValue] = [{"type": "number"}, {"type": "null"}]
    terms = {name: {"anyOf": [show(term_model(name)), *short]} for name in TERMS}
    return {"type": "object", "properties": terms, "additionalProperties": False}
