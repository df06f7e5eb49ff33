"""Which shipped method a run's configuration is: by generator form, discriminator, augmentation, terms and networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from perceptual_mae.config.layers import Merged, flatten, list_methods, read_yaml
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.loss_networks import LIVE
from perceptual_mae.report.published import PAPER, Published

FORM = ("skips", "rgb_heads", "norm_pix")


@dataclass(frozen=True)
class Method:
    """A shipped method as a run has it: its file's name, its title, and the keys whose values the run changed."""

    name: str
    title: str
    changed: tuple[str, ...] = ()

    @property
    def published(self) -> Published | None:
        """The paper's numbers of this row."""
        return PAPER.get(self.name)


def method_of(config: RunConfig) -> Method | None:
    """Return the method that the configuration has the parts of, the one with the fewest changed values; or None.

    Of two that say the same (`improved_mae_original` is `mse`, named by its study) it is the one with fewer words.
    """
    values = config.model_dump(mode="json", by_alias=True)
    values_by_key = dict(flatten(values))
    methods = [
        Method(
            name,
            title,
            tuple(key for key, value in flatten(stated) if values_by_key.get(key) != _said(config, key, value)),
        )
        for name, title, stated in sorted(_shipped(), key=lambda shipped: len(flatten(shipped[2])))
        if parts_of(stated) == parts_of(values)
    ]
    return min(methods, key=lambda method: len(method.changed), default=None)


def parts_of(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what makes a method: numbers left out."""
    generator, losses = values["generator"], values["losses"]
    return (
        tuple(bool(generator.get(name)) for name in FORM),
        (values.get("discriminator") or {}).get("kind"),
        (values.get("augment") or {}).get("kind"),
        frozenset((term, _network_of(options)) for term, options in losses.items()),
        frozenset(name for name, options in (values.get("penalties") or {}).items() if options is not None),
    )


def _said(config: RunConfig, key: str, value: Any) -> Any:
    """Return what a method's value means: null for an option of a discriminator or augmentation is its default."""
    section, _, option = key.partition(".")
    if value is not None or not option or section not in ("discriminator", "augment"):
        return value
    field = type(getattr(config, section)).model_fields.get(option)
    return None if field is None else field.default


def _network_of(options: Mapping[str, Any]) -> str:
    return str((options.get("network") or {}).get("kind", LIVE))


@cache
def _shipped() -> list[tuple[str, str, dict[str, Any]]]:
    """List name, title and values of the shipped methods, numbers for short written out."""
    methods = []
    for shipped in list_methods():
        merged = Merged(values={})
        merged.merge(read_yaml(shipped.path), shipped.name)
        methods.append((shipped.name, shipped.title, merged.values))
    return methods
