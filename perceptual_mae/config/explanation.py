"""Where the values of a configuration come from: which layer sets them, whose they are, what the paper has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, RootModel

from perceptual_mae.config.all_keys import models_of_places
from perceptual_mae.config.errors import describe, fields_of, show
from perceptual_mae.config.from_signature import Options, first_line, meaning_of
from perceptual_mae.config.layers import (
    Merged,
    Shipped,
    find_layer,
    list_methods,
    list_recipes,
    merge_layers,
    read_comments,
    read_yaml,
)
from perceptual_mae.config.mistake import join
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError, did_you_mean

DEFAULT = "default"
TYPED = "yours"
"""Whose an override is that somebody typed."""


@dataclass(frozen=True)
class Published:
    """A value that the paper states, and its place there; `more` is what the value leaves out."""

    value: Any
    place: str
    more: str = ""

    def __str__(self) -> str:
        return f"{show(self.value)}{self.more} ({self.place})"


PAPER: Mapping[str, Published] = {
    "masking.ratio": Published(0.75, "section 4"),
    "generator.patch_size": Published(16, "section 4"),
    "losses.l1.weight": Published(1.0, "equation 1"),
    "losses.ms_ssim.alpha": Published(0.85, "section 4"),
    "losses.feature_matching.weight": Published(0.05, "section 4"),
    "losses.feature_matching.when": Published("even_epochs", "section 4"),
    "losses.style.weight": Published(40.0, "section 4"),
    "losses.style.when": Published("even_epochs", "section 4"),
    "losses.adversarial.kind": Published("least_squares", "equations 4 and 5"),
    "losses.adversarial.weight": Published(1.0, "equation 6"),
    "optimizer.lr": Published(1.5e-4, "section 4"),
    "optimizer.betas": Published([0.9, 0.95], "section 4"),
    "optimizer.weight_decay": Published(0.05, "section 4"),
    "schedule.warmup_epochs": Published(40, "section 4"),
    "training.epochs": Published(300, "section 4", " for ViT-B, 1600 for ViT-L"),
    "training.batch_size": Published(16, "section 4"),
}
"""*Improving Visual Representation Learning through Perceptual Understanding*; what it takes from MAE is not here."""


@dataclass(frozen=True)
class Explained:
    """A key in force: its value, what it means, the layer or override that set it, and whose value it is."""

    key: str
    value: Any
    meaning: str
    set_by: str
    source: str
    published: Published | None

    def lines(self) -> list[str]:
        """Return what there is to say, for a terminal."""
        origin = self.set_by if not self.source else f"{self.set_by} [{self.source}]"
        if self.published is not None:
            same = self.published.value == self.value
            origin += f"; as in the paper, {self.published.place}" if same else f"; the paper: {self.published}"
        return [
            f"{self.key} = {show(self.value, limit=200)}",
            *([f"    {self.meaning}"] if self.meaning else []),
            f"    {origin}",
        ]


def explain_layers(arguments: Sequence[str]) -> list[Explained]:
    """Explain every key of what layers and overrides resolve to. Raises UserError for mistakes in them."""
    config, merged = load_config(arguments), merge_layers(arguments)
    comments = {name: read_comments(find_layer(name)) for name in arguments if "=" not in name}
    return list(_explain(config, config.model_dump(mode="json", by_alias=True), "", merged, comments))


def explain_key(name: str) -> list[str]:
    """Return lines on the keys that are called so: by dotted place, such as optimizer.lr, or by the last word.

    Raises UserError where there is none.
    """
    every = list(_all_keys())
    matching = [each for each in every if each[0] == name] or [
        each for each in every if each[0].rpartition(".")[2] == name
    ]
    if not matching:
        layers = [each.name for each in [*list_recipes(), *list_methods()]]
        hint = did_you_mean(name, [*layers, *dict.fromkeys(key for key, *_ in every)])
        raise UserError(f"{name}: there is no such layer and no such key; pmae configs lists the layers{hint}")
    lines = list[str]()
    for key, kinds, values, default, meaning, source in matching:
        lines += [f"{key}{f' (kind: {kinds})' if kinds else ''}", f"    {meaning}", f"    values: {values}"]
        lines.append(f"    default: {default}{f' [{source}]' if source else ''}")
        if key in PAPER:
            lines.append(f"    the paper: {PAPER[key]}")
        lines += [f"    {layer.name}: {value}" for layer, value in _set_in_layers(key)]
    return lines


def _explain(
    section: BaseModel, values: Mapping[str, Any], place: str, merged: Merged, comments: Mapping[str, Mapping[str, str]]
) -> Iterator[Explained]:
    for name, (part, meaning, source) in _parts(section).items():
        key, value = join(place, name), values[name]
        if isinstance(part, BaseModel) and isinstance(value, Mapping) and value and key not in PAPER:
            yield from _explain(part, value, key, merged, comments)
            continue
        label = _origin(key, merged)
        if label in comments:
            source = comments[label].get(key, "")
        yield Explained(key, value, meaning, label, TYPED if "=" in label else source, PAPER.get(key))


def _parts(section: BaseModel) -> dict[str, tuple[object, str, str]]:
    """Return by key in a file what stands there, what it means, and whose its default is."""
    if isinstance(section, RootModel):
        entries: dict[str, Options] = section.root
        return {name: (entry, first_line(type(entry).constructor).rstrip("."), "") for name, entry in entries.items()}
    values = dict(section)
    attributes = {field.alias or name: name for name, field in type(section).model_fields.items()}
    return {key: (values[attributes[key]], *meaning_of(field)) for key, field in fields_of(type(section)).items()}


def _origin(key: str, merged: Merged) -> str:
    """Return what set a key last: of a value that is a mapping, what set one of its parts."""
    inside = [label for each, label in merged.origins.items() if each == key or each.startswith(f"{key}.")]
    return inside[-1] if inside else DEFAULT


def _all_keys() -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield every key with the kinds that have it, values, default, meaning and whose the default is."""
    for place, models in models_of_places().items():
        rows: dict[tuple[str, str, str, str, str], list[str]] = {}
        for kind, model in models.items():
            for name, field in fields_of(model).items():
                default = None if field.is_required() else field.get_default(call_default_factory=True)
                default_text = (
                    "must be given" if field.is_required() else "a section" if _is_section(default) else show(default)
                )
                meaning, source = meaning_of(field)
                row = (name, describe(field.annotation, field.metadata), default_text, meaning, source)
                rows.setdefault(row, []).append(kind)
        for (name, values, default_text, meaning, source), kinds in rows.items():
            of_some = ", ".join(kinds) if len(kinds) < len(models) else ""
            yield join(place, name), of_some, values, default_text, meaning, source


def _is_section(default: object) -> bool:
    return isinstance(default, BaseModel)


def _set_in_layers(key: str) -> Iterator[tuple[Shipped, str]]:
    """Yield the shipped layers that set a key, with the value and whose it is."""
    for layer in [*list_recipes(), *list_methods()]:
        value: Any = read_yaml(layer.path)
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            comment = read_comments(layer.path).get(key, "")
            yield layer, show(value) + (f" [{comment}]" if comment else "")
