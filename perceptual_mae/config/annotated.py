"""A resolved configuration as YAML, with the meaning of each key as a comment."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, RootModel

from perceptual_mae.config.errors import fields_of
from perceptual_mae.config.from_signature import Options, first_line, meaning_of
from perceptual_mae.config.layers import to_yaml

COMMENT_COLUMN = 36
INDENT = "  "


def to_annotated_yaml(config: BaseModel) -> str:
    """Return YAML that is read back as the same configuration, with the meaning of each key."""
    values = config.model_dump(mode="json", by_alias=True)
    return "".join(f"{line}\n" for line in _lines(values, config, ""))


def _lines(values: Mapping[str, Any], section: BaseModel, indent: str) -> Iterator[str]:
    """Yield the lines of a section; `values` are its own as plain data."""
    parts = _parts(section)
    for key, value in values.items():
        part, meaning = parts.get(key, (None, ""))
        if isinstance(value, Mapping) and value and isinstance(part, BaseModel):
            yield _commented(f"{indent}{key}:", meaning)
            yield from _lines(value, part, indent + INDENT)
        else:
            yield _commented(indent + to_yaml({key: value}, width=math.inf).rstrip("\n"), meaning)


def _parts(section: BaseModel) -> dict[str, tuple[object, str]]:
    """Return by key in a file what stands there, and what it means; entries mean what their functions are."""
    if isinstance(section, RootModel):
        entries: dict[str, Options] = section.root
        return {name: (entry, first_line(type(entry).constructor).rstrip(".")) for name, entry in entries.items()}
    values = dict(section)
    attributes = {field.alias or name: name for name, field in type(section).model_fields.items()}
    return {key: (values[attributes[key]], meaning_of(field)[0]) for key, field in fields_of(type(section)).items()}


def _commented(text: str, meaning: str) -> str:
    return f"{text:<{COMMENT_COLUMN}}  # {meaning}" if meaning and "\n" not in text else text
