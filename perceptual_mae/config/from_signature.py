"""Sections of a configuration derived from signatures: the options of a class are its keyword-only parameters.

Positional parameters come from the run (tensors, shapes). Defaults stand in the signature alone, meanings in the
docstring. This is the one place that turns a table such as DISCRIMINATORS into a schema.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    RootModel,
    ValidationError,
    create_model,
)
from pydantic import field_validator as validate_field
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from pydantic_core.core_schema import ValidationInfo

from perceptual_mae.config.errors import RejectedError, is_bounded, mistakes_of
from perceptual_mae.config.mistake import Mistake, unknown_entry
from perceptual_mae.config.own_kinds import (
    NOTHING,
    Trust,
    import_own,
    is_own,
    positional_names,
    refusal,
    untrusted,
)
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


LARGEST = 2**31 - 1
"""Of whole numbers whose field states no bound of its own: what every library takes as a size or a count."""


class Section(BaseModel):
    """A frozen part of a configuration: no unknown keys, no NaN or infinity, and `true` is not the number 1.

    Words such as "inf" that would become a number are refused, too, and whole numbers beyond 31 bits where the field
    has no bounds of its own.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, protected_namespaces=(), allow_inf_nan=False
    )

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

    @validate_field("*", mode="after")
    @classmethod
    def _refuse_overflow(cls, value: object, info: ValidationInfo) -> object:
        if any(isinstance(leaf, int) and abs(leaf) > LARGEST for leaf in _leaves(value)):
            field = cls.model_fields[info.field_name or ""]
            if not is_bounded(field.annotation, field.metadata):
                raise ValueError(f"must be at most {LARGEST}")
        return value


class Options(Section):
    """A section that holds the options of one class or function, and fields of its own.

    types_in_files: what stands in a file for an option of a type that no file can hold, such as a network. is_trusted:
    whether its code may run; options of a section where it may not are kept as they stand, and nothing is built of it.
    """

    constructor: ClassVar[Callable[..., Any]]
    option_fields: ClassVar[Mapping[str, str]] = {}
    types_in_files: ClassVar[Mapping[type, Any]] = {}
    is_trusted: ClassVar[bool] = True

    def options(self) -> dict[str, Any]:
        """Return the options alone, as keyword arguments of the constructor."""
        return {name: getattr(self, field) for name, field in self.option_fields.items()}

    def build(self, *positional: Any) -> Any:
        """Call the constructor with what comes from the run, and the options."""
        return self.bind()(*positional)

    def bind(self) -> Callable[..., Any]:
        """Return the constructor with the options; it is called with what comes from the run."""
        if not self.is_trusted:
            self.constructor()  # which refuses
        return partial(self.constructor, **self.options())

    @classmethod
    def asks_for(cls, name: str) -> bool:
        """Return whether the constructor's first parameter has this name: it is given what is called so."""
        return first_parameter(cls.constructor) == name


class Choice(Options):
    """Options of the class that `kind` names in a table, or of one's own as `package.module:Class`."""

    kind: str


OWN_KIND: JsonSchemaValue = {
    "type": "object",
    "properties": {"kind": {"type": "string", "pattern": ":"}},
    "required": ["kind"],
}
"""What editors take for a section of a kind of one's own."""

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

    read: Callable[[Mapping[str, Any], Trust], object]
    schema: Callable[[Callable[[type[BaseModel]], JsonSchemaValue]], JsonSchemaValue]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: object, info: ValidationInfo) -> object:
            trust = info.context if isinstance(info.context, Trust) else NOTHING
            return self.read(value, trust) if isinstance(value, Mapping) else value

        return core_schema.with_info_before_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return self.schema(lambda model: handler(model.__pydantic_core_schema__))


def options_of(base: type[S], target: Callable[..., Any]) -> Reading:
    """Annotate a section that holds the options of one class."""
    return Reading(
        lambda value, trust: read_as(derive(base, target), value, trust), lambda show: show(derive(base, target))
    )


def choice(base: type[Choice], table: Mapping[str, Callable[..., Any]], what: str, default: str) -> Reading:
    """Annotate a section that holds a kind of the table and its options; `default` is the kind where none is named."""

    def read(value: Mapping[str, Any], trust: Trust) -> Choice:
        kind: object = value.get("kind", default)
        if isinstance(kind, str) and kind not in table and is_own(kind) and not trust.allows(kind):
            kept: Choice = read_as(untrusted(base, kind, what, trust.source), value, trust)
            return kept
        chosen = model(kind, trust)
        own = {field.alias or name: field for name, field in chosen.model_fields.items()}
        # null removes what a layer below set: an option of another kind, or one that then has its default again
        options = {name: option for name, option in value.items() if option is not None or _may_be_null(own.get(name))}
        return read_as(chosen, {"kind": default, **options}, trust)

    def model(kind: object, trust: Trust) -> type[Choice]:
        target = class_of_kind(kind, table, what, trust)
        try:
            return derive(base, target, str(kind))
        except (ValueError, TypeError, NameError) as error:
            raise RejectedError([Mistake(("kind",), f"{what} {kind!r} cannot be configured: {error}")]) from error

    def schema(show: Callable[[type[BaseModel]], JsonSchemaValue]) -> JsonSchemaValue:
        return {"anyOf": [*(show(model(kind, NOTHING)) for kind in table), OWN_KIND]}

    return Reading(read, schema)


def entries(
    table: Mapping[str, object],
    what: str,
    model: Callable[[str], type[Section]],
    *,
    short: str | None = None,
    own_model: Callable[[str, str, Trust], type[Section]] | None = None,
) -> Reading:
    """Annotate a section of named entries, each with its options; null removes one.

    short: the option that a number alone stands for. own_model: the section of a name that the table lacks, where an
    entry has a kind of its own, `package.module:function`. Raises RejectedError for other names.
    """

    def model_of(name: str, value: object, trust: Trust) -> type[Section]:
        if name in table:
            return model(name)
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if own_model is None or not isinstance(kind, str) or not is_own(kind):
            raise RejectedError([unknown_entry("", name, what, list(table))])
        return own_model(name, kind, trust)

    def read(values: Mapping[str, Any], trust: Trust) -> dict[str, Section]:
        sections, mistakes = dict[str, Section](), list[Mistake]()
        for name, value in values.items():
            is_short = short is not None and isinstance(value, int | float) and not isinstance(value, bool)
            try:
                if isinstance(value, Section):
                    sections[name] = value
                elif value is not None or (name not in table and short is None):
                    chosen = model_of(name, value, trust)
                    sections[name] = read_as(chosen, {short: value} if is_short else value, trust)
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
        return {"type": "object", "properties": properties, "additionalProperties": own_model is not None and OWN_KIND}

    return Reading(read, schema)


def class_of_kind(kind: object, table: Mapping[str, Callable[..., Any]], what: str, trust: Trust) -> Callable[..., Any]:
    """Return the table's line of that kind, or what `package.module:Class` names, which must take what the lines take.

    Raises RejectedError for others, and for what the trust does not allow.
    """
    if isinstance(kind, str) and kind in table:
        return table[kind]
    if not isinstance(kind, str) or not is_own(kind):
        message = f"unknown {what} {kind!r}; choose from: {', '.join(table)}, or your own package.module:Class"
        raise RejectedError([Mistake(("kind",), message, nearest(str(kind), table))])
    if not trust.allows(kind):
        raise RejectedError([Mistake(("kind",), refusal(trust.source, f"its {what} is code, {kind}"))])
    forms = [names for target in table.values() if (names := positional_names(target)) is not None]
    try:
        return import_own(kind, what, forms)
    except ValueError as error:
        raise RejectedError([Mistake(("kind",), str(error))]) from error


def sections_of_options(value: object, place: str = "") -> Iterator[tuple[str, Options]]:
    """Yield every section of options in a configuration with its dotted place."""
    if isinstance(value, Options):
        yield place, value
    parts = value.root if isinstance(value, RootModel) else dict(value) if isinstance(value, BaseModel) else {}
    for name, part in parts.items():
        yield from sections_of_options(part, f"{place}.{name}".lstrip("."))


def refuse_untrusted(value: object) -> None:
    """Raise UserError where code that may not run is needed for something in a configuration."""
    for _, section in sections_of_options(value):
        section.bind()


def imported_kinds(config: object) -> frozenset[str]:
    """Return the kinds of one's own in a configuration that have been imported, and may be again."""
    kinds = (getattr(section, "kind", None) for _, section in sections_of_options(config) if section.is_trusted)
    return frozenset(kind for kind in kinds if isinstance(kind, str) and is_own(kind))


def _kind_meaning(base: type[BaseModel], target: object) -> str:
    _, source = meaning_of(base.model_fields["kind"])
    return f"{first_line(target).rstrip('.')} [{source or 'none'}]"


def read_as(model: type[Read], value: object, trust: Trust = NOTHING) -> Read:
    """Return the value as this model; its mistakes travel together in one `RejectedError`."""
    try:
        return model.model_validate(value, context=trust)
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
