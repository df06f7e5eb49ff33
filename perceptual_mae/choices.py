"""Sections of a configuration derived from signatures: the options of a class are its keyword-only parameters.

Positional parameters come from the run (tensors, shapes). Defaults stand in the signature alone. This is the one place
that turns a table such as DISCRIMINATORS into a schema.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, create_model
from pydantic import field_validator as validate_field
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from pydantic_core.core_schema import ValidationInfo

from perceptual_mae.layers import did_you_mean


class Section(BaseModel):
    """A frozen part of a configuration: no unknown keys, no NaN or infinity, and `true` is not the number 1."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True, arbitrary_types_allowed=True
    )

    @validate_field("*", mode="before")
    @classmethod
    def _refuse_impostors(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if not _is_section(annotation):
            if any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in _leaves(value)):
                raise ValueError("neither NaN nor infinity")
            if any(isinstance(leaf, bool) for leaf in _leaves(value)) and not _takes_bool(annotation):
                raise ValueError("a truth value is no number")
        return value


class Options(Section):
    """A section that holds the options of one class or function, beside fields of its own."""

    target: ClassVar[Callable[..., Any]]
    option_names: ClassVar[tuple[str, ...]] = ()

    def options(self) -> dict[str, Any]:
        """Return the options alone, as keyword arguments of the target."""
        return {name: getattr(self, name) for name in self.option_names}

    def build(self, *positional: Any) -> Any:
        """Call the target with what comes from the run, and the options."""
        return type(self).target(*positional, **self.options())


class Choice(Options):
    """Options of the class that `kind` names in a table, or of one's own as `package.module:Class`."""

    kind: str


S = TypeVar("S", bound=Options)


class Rejected(ValueError):
    """A mapping that failed the derived model; the report opens it up."""

    def __init__(self, model: type[BaseModel], error: ValidationError) -> None:
        super().__init__(str(error))
        self.model, self.error = model, error


class UnknownKind(ValueError):
    """A kind that is neither in the table nor an importable class."""


@cache
def derive(base: type[S], target: Callable[..., Any], kind: str | None = None) -> type[S]:
    """Return `base` with the keyword-only parameters of `target` as fields, and `kind` fixed if given.

    Raises ValueError where an option has no type, or the name of a field that `base` already has for itself.
    """
    function = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    options = {option.name: option for option in parameters if option.kind is option.KEYWORD_ONLY}
    for name in options:
        if name not in hints:
            raise ValueError(f"option {name} of {target.__qualname__} has no type; annotate it")
        if name == "kind" and kind or name in base.model_fields and not base.model_fields[name].is_required():
            raise ValueError(f"option {name} of {target.__qualname__} is taken by the section itself; rename it")
    fields: dict[str, Any] = {
        name: (hints[name], ... if option.default is option.empty else option.default)
        for name, option in options.items()
    }
    if kind is not None:
        fields = {"kind": (Literal[kind], kind)} | fields
    model = create_model(base.__name__, __base__=base, __doc__=inspect.getdoc(target), **fields)
    model.target = staticmethod(target)
    model.option_names = tuple(options)
    return model


def find_kind(kind: object, table: Mapping[str, Callable[..., Any]], what: str) -> Callable[..., Any]:
    """Return what `kind` names: a line of the table, or a class or function as `package.module:Class`."""
    if isinstance(kind, str) and kind in table:
        return table[kind]
    if not isinstance(kind, str) or ":" not in kind:
        suggestion = did_you_mean(str(kind), table)
        raise UnknownKind(
            f"unknown {what} {kind!r}; choose from: {', '.join(table)}, or your own package.module:Class{suggestion}"
        )
    module, _, name = kind.partition(":")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownKind(f"cannot import {what} {kind!r}: {error}") from error
    if not callable(target):
        raise UnknownKind(f"{what} {kind!r} is neither a class nor a function")
    return target  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Annotation of a `Choice` field: reads a mapping as the options of the kind it names, `default` if it names none."""

    base: type[Choice]
    table: Mapping[str, Callable[..., Any]]
    what: str
    default: str

    def model(self, kind: object) -> type[Choice]:
        target = find_kind(kind, self.table, self.what)
        try:
            return derive(self.base, target, str(kind))
        except (ValueError, TypeError, NameError) as error:
            raise UnknownKind(f"{self.what} {kind!r} cannot be configured: {error}") from error

    def read(self, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return read_as(self.model(value.get("kind", self.default)), value)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        shipped = [handler(self.model(kind).__pydantic_core_schema__) for kind in self.table]
        own = {"type": "object", "properties": {"kind": {"type": "string", "pattern": ":"}}, "required": ["kind"]}
        return {"anyOf": [*shipped, own]}


def read_as(model: type[S], value: object) -> S:
    """Return the value as this model; its mistakes stay inside one `Rejected`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Rejected(model, error) from error


def _leaves(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def _takes_bool(annotation: object) -> bool:
    return annotation in (bool, Any) or isinstance(annotation, bool) or any(map(_takes_bool, get_args(annotation)))


def _is_section(annotation: object) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, Section)
