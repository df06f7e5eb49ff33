"""From layers to a frozen `RunConfig`: all mistakes in one report, each with the layer that made it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from discriminators import AUGMENTATIONS
from perceptual_mae.config import layers
from perceptual_mae.config.errors import mistakes_of
from perceptual_mae.config.from_signature import sections_of_options
from perceptual_mae.config.mistake import Mistake, line_of
from perceptual_mae.config.own_kinds import EVERYTHING, NOTHING, Trust
from perceptual_mae.config.schema import (
    DataSection,
    DiscriminatorSection,
    GeneratorSection,
    LossesSection,
    LossNetworkSection,
    MaskingSection,
    RunConfig,
    TermSection,
)
from perceptual_mae.config.training_sections import (
    EvaluationSection,
    OptimizerSection,
    ScheduleSection,
    TrackingSection,
    TrainingSection,
)
from perceptual_mae.config.validation import cross_field_errors
from perceptual_mae.errors import UserError

__all__ = [
    "DataSection",
    "DiscriminatorSection",
    "EvaluationSection",
    "GeneratorSection",
    "LossNetworkSection",
    "LossesSection",
    "MaskingSection",
    "OptimizerSection",
    "RunConfig",
    "ScheduleSection",
    "TermSection",
    "TrackingSection",
    "TrainingSection",
    "json_schema",
    "load_config",
    "parse_config",
    "to_yaml",
]


def load_config(arguments: Sequence[str]) -> RunConfig:
    """Return the configuration that layers (names or paths) and `key=value` overrides make together.

    Classes of one's own that they name, `package.module:Class`, are imported. Raises UserError with one line a mistake.
    """
    merged = layers.merge_layers(arguments)
    return parse_config(merged.values, merged.origins, trust=EVERYTHING)


def parse_config(
    values: Mapping[str, Any],
    origins: Mapping[str, str] | None = None,
    *,
    origin: str = "configuration",
    trust: Trust = NOTHING,
) -> RunConfig:
    """Return the configuration that a mapping of sections stands for; what it leaves out has its default.

    origins: who set which dotted key, for the report; keys without an entry are `origin`'s. trust: which classes of
    one's own may be imported; sections of others are kept as they stand, and refuse to be built. Raises UserError with
    one line a mistake: `origin: dotted.key: what was found, what is allowed (did you mean 'x'?)`.
    """
    trust = replace(trust, source=origin)
    merged = layers.Merged()
    merged.merge(values, origin)
    # An empty section changes nothing; but no discriminator and no losses are choices.
    stated = {
        name: value
        for name, value in merged.values.items()
        if value is not None or name in ("discriminator", "augment")
    }
    if merged.values.get("losses", {}) is None:
        stated["losses"] = {}
    config, mistakes = _read(stated, trust)
    if stated.get("augment") == {}:  # off by default, and not to be switched on by saying nothing
        kinds = ", ".join(AUGMENTATIONS)
        mistakes.append(Mistake(("augment",), f"found {{}}, must name a kind ({kinds}), or be null for none"))
    if config is None:
        config, _ = _read(_without(stated, mistakes), trust)
    if config is not None:
        # What depends on a class that was not imported cannot be checked.
        unread = [Mistake((place,), "") for place, part in sections_of_options(config) if not part.is_trusted]
        misfits = cross_field_errors(config)
        mistakes += [misfit for misfit in misfits if not any(map(misfit.depends_on, [*mistakes, *unread]))]
    if config is None or mistakes:
        raise UserError("\n".join(line_of(mistake, origins or {}, origin, keys_of_sections()) for mistake in mistakes))
    return config


def to_yaml(config: RunConfig) -> str:
    """Return the resolved configuration as YAML that `parse_config` reads back as the same configuration."""
    return layers.to_yaml(config.model_dump(mode="json", by_alias=True))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for editors."""
    return RunConfig.model_json_schema(by_alias=True) | {"title": "perceptual-mae run"}


def _read(values: Mapping[str, Any], trust: Trust) -> tuple[RunConfig | None, list[Mistake]]:
    try:
        return RunConfig.model_validate(values, context=trust), []
    except ValidationError as error:
        return None, mistakes_of(RunConfig, error, values)


def _without(values: Mapping[str, Any], mistakes: Sequence[Mistake]) -> dict[str, Any]:
    """Return the values less the mistaken ones, so that the rest can be checked for its fit."""
    wrong = {mistake.keys[0].removesuffix(".kind") for mistake in mistakes}

    def keep(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: keep(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
            for key, value in tree.items()
            if f"{prefix}{key}" not in wrong
        }

    return keep(values, "")


@cache
def keys_of_sections() -> dict[str, str]:
    """Return the keys of all sections with their dotted places; of the same key, that of the first section."""
    keys: dict[str, str] = {}
    for section, field in RunConfig.model_fields.items():
        for model in (field.annotation, *get_args(field.annotation)):
            if isinstance(model, type) and issubclass(model, BaseModel):
                for name in model.model_fields:
                    keys.setdefault(name, f"{section}.{name}")
    return keys
