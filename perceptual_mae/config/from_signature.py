"""Sections of a configuration derived from signatures: the options of a class are its keyword-only parameters.

Positional parameters come from the run (tensors, shapes). Defaults stand in the signature alone, meanings in the
docstring. This is the one place that turns a table such as DISCRIMINATORS into a schema.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    create_model,
)
from pydantic import field_validator as validate_field
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from pydantic_core.core_schema import ValidationInfo

from perceptual_mae.config.errors import RejectedError, mistakes_of
from perceptual_mae.config.mistake import Mistake, unknown_entry
from perceptual_mae.errors import nearest


def describe_fields(model: type[BaseModel]) -> None:
    """Give the fields of a section the meanings that its docstring states."""
    meanings = option_docs(model)
    for name, field in model.model_fields.items():
        field.description = meanings.get(field.alias or name, field.description)
    if meanings:
        model.model_rebuild(force=True)


def option_docs(target: object) -> dict[str, str]:
    """Return the meanings of options by name, from the `Options:` block of a docstring.

    A line of it is `name: meaning [source]`; lines indented deeper continue it, and a blank line ends the block. The
    source says whose the default is: paper, MAE, ours, none, or the title of a text.
    """
    lines = (inspect.getdoc(target) or "").splitlines()
    meanings: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Options:") + 1 :] if "Options:" in lines else []:
        if entry := re.fullmatch(r" {4}(\w+): (.+)", line):
            name, meanings[entry[1]] = entry[1], entry[2].strip()
        elif name and line.startswith(" " * 5):
            meanings[name] += f" {line.strip()}"
        else:
            break
    return meanings


def meaning_of(field: FieldInfo) -> tuple[str, str]:
    """Return what a field means and whose its default is ("" where it does not say so)."""
    text = field.description or ""
    stated = re.fullmatch(r"(.*?)(?: \[([^\[\]]+)\])?", text)
    return (stated[1], stated[2] or "") if stated else (text, "")


def first_parameter(target: Callable[..., Any]) -> str | None:
    """Return the name of a constructor's first parameter: what it is made of, such as `attention`, `discriminator`."""
    return next(iter(inspect.signature(target).parameters), None)


def first_line(target: object) -> str:
    """Return what a class or function is, in the first line of its docstring."""
    return (inspect.getdoc(target) or "").partition("\n")[0]


class Section(BaseModel):
    """A frozen part of a configuration: no unknown keys, no NaN or infinity, and `true` is not the number 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, protected_namespaces=())

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        describe_fields(cls)

    @validate_field("*", mode="before")
    @classmethod
    def _refuse_impostors(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if not (inspect.isclass(annotation) and issubclass(annotation, Section)):  # a nested section checks its own
            for leaf in _leaves(value):
                if isinstance(leaf, float) and not math.isfinite(leaf):
                    raise ValueError("must be finite")
                if isinstance(leaf, bool) and not _takes_bool(annotation):
                    raise ValueError("a truth value is no number")
        return value


class Options(Section):
    """A section that holds the options of one class or function, and fields of its own.

    types_in_files: what stands in a file for an option of a type that no file can hold, such as a network.
    """

    constructor: ClassVar[Callable[..., Any]]
    option_fields: ClassVar[Mapping[str, str]] = {}
    types_in_files: ClassVar[Mapping[type, Any]] = {}

    def options(self) -> dict[str, Any]:
        """Return the options alone, as keyword arguments of the constructor."""
        return {name: getattr(self, field) for name, field in self.option_fields.items()}

    def build(self, *positional: Any) -> Any:
        """Call the constructor with what comes from the run, and the options."""
        return self.constructor(*positional, **self.options())

    @classmethod
    def asks_for(cls, name: str) -> bool:
        """Return whether the constructor's first parameter has this name: it is given what is called so."""
        return first_parameter(cls.constructor) == name


class Choice(Options):
    """Options of the class that `kind` names in a table, or of one's own as `package.module:Class`."""

    kind: str


S = TypeVar("S", bound=Options)
Read = TypeVar("Read", bound=Section)


@cache
def derive(base: type[S], target: Callable[..., Any], kind: str | None = None) -> type[S]:
    """Return `base` with the keyword-only parameters of `target` as fields, and `kind` fixed if given.

    A field that `base` declares without a default is there for type checkers: the signature fills it in. An option that
    bears the name of a method or property (`size`) is known by it in files and `options()` only. Raises ValueError
    where an option has no type, or the name of another field.
    """
    function = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    options = {option.name: option for option in parameters if option.kind is option.KEYWORD_ONLY}
    taken = {name for name, field in base.model_fields.items() if not field.is_required()}
    for name in options:
        if name not in hints:
            raise ValueError(f"its option {name} has no type; annotate it")
        if name in taken or (name == "kind" and kind is not None):
            raise ValueError(f"its option {name} bears a name of the section's own; rename it")
    fields: dict[str, Any] = {}
    names = {name: f"{name}_option" if hasattr(base, name) else name for name in options}
    for name, option in options.items():
        default = ... if option.default is option.empty else option.default
        hint = hints[name]
        hint = base.types_in_files.get(hint, hint) if inspect.isclass(hint) else hint
        fields[names[name]] = (hint, default if names[name] == name else Field(default, alias=name))
    if kind is not None:
        fields["kind"] = (Literal[kind], Field(kind, description=_kind_meaning(base, target)))
    model = create_model(base.__name__, __base__=base, __doc__=inspect.getdoc(target), **fields)
    model.constructor = staticmethod(target)
    model.option_fields = names
    return model


def fill(values: Any, names: tuple[str, str], default: float) -> Any:
    """Give the first of two alternatives its default where neither is stated."""
    if isinstance(values, Mapping) and all(values.get(name) is None for name in names):
        return {**values, names[0]: default}
    return values


@dataclass(frozen=True, eq=False)
class Reading:
    """Annotation of a field: how the mapping in a file becomes its section, and its JSON schema for editors."""

    read: Callable[[Mapping[str, Any]], object]
    schema: Callable[[Callable[[type[BaseModel]], JsonSchemaValue]], JsonSchemaValue]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: object) -> object:
            return self.read(value) if isinstance(value, Mapping) else value

        return core_schema.no_info_before_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return self.schema(lambda model: handler(model.__pydantic_core_schema__))


def options_of(base: type[S], target: Callable[..., Any]) -> Reading:
    """Annotate a section that holds the options of one class."""
    return Reading(lambda value: read_as(derive(base, target), value), lambda show: show(derive(base, target)))


def choice(base: type[Choice], table: Mapping[str, Callable[..., Any]], what: str, default: str) -> Reading:
    """Annotate a section that holds a kind of the table and its options; `default` is the kind where none is named."""

    def read(value: Mapping[str, Any]) -> Choice:
        chosen = model(value.get("kind", default))
        own = {field.alias or name: field for name, field in chosen.model_fields.items()}
        # null removes what a layer below set: an option of another kind, or one that then has its default again
        options = {name: option for name, option in value.items() if option is not None or _may_be_null(own.get(name))}
        return read_as(chosen, {"kind": default, **options})

    def model(kind: object) -> type[Choice]:
        target = class_of_kind(kind, table, what)
        try:
            return derive(base, target, str(kind))
        except (ValueError, TypeError, NameError) as error:
            raise RejectedError([Mistake(("kind",), f"{what} {kind!r} cannot be configured: {error}")]) from error

    def schema(show: Callable[[type[BaseModel]], JsonSchemaValue]) -> JsonSchemaValue:
        own = {"type": "object", "properties": {"kind": {"type": "string", "pattern": ":"}}, "required": ["kind"]}
        return {"anyOf": [*(show(model(kind)) for kind in table), own]}

    return Reading(read, schema)


def entries(
    table: Mapping[str, object], what: str, model: Callable[[str], type[Section]], *, short: str | None = None
) -> Reading:
    """Annotate a section of named entries, each with its options; null removes one.

    short: the option that a number alone stands for. Raises RejectedError for names that the table lacks.
    """

    def read(values: Mapping[str, Any]) -> dict[str, Section]:
        sections, mistakes = dict[str, Section](), list[Mistake]()
        for name, value in values.items():
            is_short = short is not None and isinstance(value, int | float) and not isinstance(value, bool)
            try:
                if name not in table and (value is not None or short is None):
                    raise RejectedError([unknown_entry("", name, what, list(table))])
                if isinstance(value, Section):
                    sections[name] = value
                elif value is not None:
                    sections[name] = read_as(model(name), {short: value} if is_short else value)
            except RejectedError as rejected:
                mistakes += [mistake.under(name) for mistake in rejected.mistakes]
        if mistakes:
            raise RejectedError(mistakes)
        return sections

    def schema(show: Callable[[type[BaseModel]], JsonSchemaValue]) -> JsonSchemaValue:
        properties: JsonSchemaValue = {name: show(model(name)) for name in table}
        if short is not None:
            others = ({"type": "number"}, {"type": "null"})
            properties = {name: {"anyOf": [options, *others]} for name, options in properties.items()}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    return Reading(read, schema)


def class_of_kind(kind: object, table: Mapping[str, Callable[..., Any]], what: str) -> Callable[..., Any]:
    """Return the table's line of that kind, or what `package.module:Class` names; others are rejected."""
    if isinstance(kind, str) and kind in table:
        return table[kind]
    if not isinstance(kind, str) or ":" not in kind:
        message = f"unknown {what} {kind!r}; choose from: {', '.join(table)}, or your own package.module:Class"
        raise RejectedError([Mistake(("kind",), message, nearest(str(kind), table))])
    module, _, name = kind.partition(":")
    try:
        target: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's own may fail in any way
        raise RejectedError([Mistake(("kind",), f"cannot import {what} {kind!r}: {error}")]) from error
    return target


def _kind_meaning(base: type[BaseModel], target: object) -> str:
    _, source = meaning_of(base.model_fields["kind"])
    return f"{first_line(target).rstrip('.')} [{source or 'none'}]"


def read_as(model: type[Read], value: object) -> Read:
    """Return the value as this model; its mistakes travel together in one `RejectedError`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RejectedError(mistakes_of(model, error, value)) from error


def _leaves(value: object) -> list[object]:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else None
    return [value] if parts is None else [leaf for part in parts for leaf in _leaves(part)]


def _may_be_null(field: FieldInfo | None) -> bool:
    """Tell whether null is a value of a field; where it has no default, null is kept to be refused."""
    if field is None:
        return False
    return field.is_required() or field.annotation in (None, Any) or type(None) in get_args(field.annotation)


def _takes_bool(annotation: object) -> bool:
    return annotation in (bool, Any) or isinstance(annotation, bool) or any(map(_takes_bool, get_args(annotation)))
