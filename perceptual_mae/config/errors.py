"""Pydantic's errors as mistakes: what was found, what is allowed, what was probably meant."""

import inspect
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from perceptual_mae.config.mistake import Mistake, join, unknown_key
from perceptual_mae.errors import nearest


class RejectedError(ValueError):
    """A part of a configuration that has mistakes; their keys are relative to that part."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(f"{mistake.keys[0]}: {mistake.message}" for mistake in mistakes))
        self.mistakes = mistakes


def mistakes_of(model: type[BaseModel], error: ValidationError, value: object) -> list[Mistake]:
    """Translate pydantic's errors about `value` into one mistake a key, with keys relative to `model`."""
    mistakes: dict[str, Mistake] = {}
    problems = error.errors(include_url=False)  # of a value that may be several things, infinity is what is wrong
    for problem in sorted(problems, key=lambda each: each["type"] != "finite_number"):
        inner, values, prefix, place = _innermost(model, value, problem["loc"])
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, RejectedError):
            for mistake in cause.mistakes:
                placed = mistake.under(join(prefix, ".".join(map(str, place))))
                mistakes.setdefault(placed.keys[0], placed)
        elif not place:
            names = getattr(inner, "names", None) or fields_of(inner)  # a section of entries names them
            given = "is missing" if problem["type"] == "missing" else f"found {show(values)}"
            message = f"{given}, must be a mapping of {', '.join(names)}"
            mistakes.setdefault(prefix, Mistake((prefix,), message))
        else:
            name = str(place[0])
            key = join(prefix, name)
            mistakes.setdefault(key, _about(inner, name, key, values, _limit(problem["type"], cause)))
    return list(mistakes.values())


def describe(annotation: Any, metadata: Any = ()) -> str:
    """Say in words which values a type with its bounds allows: "a number > 0", "one of constant, follow"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument, metadata) for argument in arguments)
    if origin is Literal:
        return (
            "one of " + ", ".join(str(argument) for argument in arguments) if len(arguments) > 1 else str(arguments[0])
        )
    if origin in (tuple, list):
        return _describe_list(arguments)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(f"{name}: ..." for name in fields_of(annotation)) + "}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    word = words.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{word}{_bounds(metadata)}" if annotation in (int, float) else word


def show(value: object, limit: int = 60) -> str:
    """Return a value as a short piece of YAML."""
    if isinstance(value, str):
        text = repr(value)
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
        text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a model's fields by the names they have in a file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def is_bounded(annotation: Any, metadata: Any = ()) -> bool:
    """Tell whether a type, or a part of it, states the largest value that it allows."""
    return any(getattr(part, name, None) is not None for part in _flat(metadata) for name in ("lt", "le")) or any(
        is_bounded(part, getattr(part, "__metadata__", ())) for part in get_args(annotation)
    )


def _limit(kind: str, cause: object) -> str:
    """Return what a value must be beyond what its field says: finite, or not too large."""
    text = "must be finite" if kind == "finite_number" else str(cause or "")
    return f", {text.removeprefix('must be ')}" if text.startswith("must be ") else ""


def _about(model: type[BaseModel], name: str, key: str, values: object, limit: str) -> Mistake:
    field = fields_of(model).get(name)
    if field is None:
        value = values.get(name) if isinstance(values, Mapping) else None
        return unknown_key(key, name, value, list(fields_of(model)), fixed_kind(model), inner_keys(model))
    allowed = describe(field.annotation, field.metadata)
    if not isinstance(values, Mapping) or name not in values:
        return Mistake((key,), f"is missing, must be {allowed}")
    value = values[name]
    words = [word for word in _words(field.annotation) if isinstance(word, str)]
    given = [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]
    suggestion = next((nearest(word, words) for word in given if word not in words), None)
    return Mistake((key,), f"found {show(value)}, must be {allowed}{limit}", suggestion)


def inner_keys(model: type[BaseModel]) -> dict[str, str]:
    """Return the keys that values of the model's fields take, with their dotted places: balanced -> weight.balanced."""
    keys: dict[str, str] = {}
    for field, info in fields_of(model).items():
        for form in (info.annotation, *get_args(info.annotation)):
            if inspect.isclass(form) and issubclass(form, BaseModel):
                for name in fields_of(form):
                    keys.setdefault(name, f"{field}.{name}")
    return keys


def _innermost(
    model: type[BaseModel], value: object, place: tuple[int | str, ...]
) -> tuple[type[BaseModel], object, str, tuple[int | str, ...]]:
    """Descend through plain nested sections: return the model, value and dotted key of the problem."""
    prefix = ""
    while place and (field := model.model_fields.get(str(place[0]))):
        if not (inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)):
            break
        value = value.get(place[0]) if isinstance(value, Mapping) else value
        model, prefix, place = field.annotation, join(prefix, str(place[0])), place[1:]
    return model, value, prefix, place


def fixed_kind(model: type[BaseModel]) -> str | None:
    """Return the one kind whose options a model holds, or None."""
    field = model.model_fields.get("kind")
    is_fixed = field is not None and get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    return str(get_args(field.annotation)[0]) if field is not None and is_fixed else None


def _describe_list(arguments: tuple[Any, ...]) -> str:
    inner = describe(arguments[0]) if arguments else "values"
    for one, many in (("a number", "numbers"), ("a whole number", "whole numbers"), ("text", "texts")):
        inner = many + inner.removeprefix(one) if inner.startswith(one) else inner
    counted = len(arguments) > 1 and arguments[-1] is not Ellipsis
    return f"a list of {len(arguments)} {inner}" if counted else f"a list of {inner}"


def _bounds(metadata: Any) -> str:
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    bounds = [
        f"{sign} {bound}"
        for part in _flat(metadata)
        for name, sign in signs
        if (bound := getattr(part, name, None)) is not None
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _flat(metadata: Any) -> list[Any]:
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _words(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for argument in get_args(annotation) for word in _words(argument)]
