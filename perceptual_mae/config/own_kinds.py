"""Kinds of one's own, `package.module:Class`: whose code may be imported, and what it must take before it is called.

To import a module is to run it. So the values of a configuration are read under a `Trust`, which names the kinds that
may be imported: all that the user typed, and of a folder that is opened none, unless its code is trusted.
"""

import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from perceptual_mae.errors import UserError

FLAG = "--trust-code"


@dataclass(frozen=True)
class Trust:
    """Which kinds of one's own may be imported while values are read: those named here, or every one.

    source: where the values stand, for the message of a refusal.
    """

    kinds: frozenset[str] = frozenset()
    everything: bool = False
    source: str = "the configuration"

    def allows(self, kind: str) -> bool:
        return self.everything or kind in self.kinds


EVERYTHING = Trust(everything=True)
"""For values that the user typed, or a folder whose code is trusted."""
NOTHING = Trust()


def is_own(kind: object) -> bool:
    """Tell whether a kind names something of one's own, and no line of a table."""
    return isinstance(kind, str) and ":" in kind


def refusal(place: str, code: str) -> str:
    """Return the message for code that may not run: where it stands, and what would be run."""
    return f"{place}: {code}; add {FLAG} (in Python trust_code=True) if you trust its author"


def import_own(kind: str, what: str, forms: Iterable[tuple[str, ...]]) -> Callable[..., Any]:
    """Import what `package.module:Class` names, also from the current folder; it is not called.

    forms: the positional parameters it may take, by name. Raises ValueError, of one line, where it is not there, or no
    class or function that takes them.
    """
    target: Callable[..., Any] = _import(kind, what)
    wanted = list(dict.fromkeys(forms))
    is_callable = inspect.isclass(target) or inspect.isfunction(target)
    if not is_callable or positional_names(target) not in wanted:
        must = f"must be a class or function that takes {' or '.join(map(_show, wanted))}"
        raise ValueError(f"{what} {kind!r} {must}, but {_description(target)}")
    return target


def import_own_term(kind: str, fields: Sequence[str]) -> Callable[..., Any]:
    """Import a loss function of one's own, whose positional parameters are some of the fields; it is not called.

    Raises ValueError, of one line, as `import_own` does.
    """
    target: Callable[..., Any] = _import(kind, "loss term")
    names = positional_names(target) if inspect.isfunction(target) else None
    if not names or not set(names) <= set(fields):
        must = f"must be a function of fields and keyword-only options; fields are {', '.join(fields)}"
        raise ValueError(f"loss term {kind!r} {must}, but {_description(target)}")
    return target


def _import(kind: str, what: str) -> Any:
    module, _, name = kind.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's own may fail in any way
        raise ValueError(f"cannot import {what} {kind!r}: {' '.join(str(error).split())}") from error


def positional_names(target: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return the parameters that come from the run, by name; options are keyword-only. None: it does not say."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return None
    stars = {inspect.Parameter.VAR_POSITIONAL.name: "*", inspect.Parameter.VAR_KEYWORD.name: "**"}
    from_run = [each for each in parameters if each.kind is not each.KEYWORD_ONLY]
    return tuple(f"{stars.get(each.kind.name, '')}{each.name}" for each in from_run)


M = TypeVar("M", bound=BaseModel)


@cache
def untrusted(base: type[M], kind: str, what: str, source: str) -> type[M]:
    """Return a section of options for a kind whose code may not run: they are kept, unread, and written back alike.

    Whoever builds it gets a UserError that says what would be run.
    """

    def refuse(*_: object, **__: object) -> NoReturn:
        raise UserError(refusal(source, f"its {what} is code that would be imported and run, {kind}"))

    members = {
        "model_config": ConfigDict(extra="allow"),
        "is_trusted": False,
        "constructor": staticmethod(refuse),
        "__module__": base.__module__,
    }
    return cast(type[M], types.new_class(base.__name__, (base,), exec_body=lambda body: body.update(members)))


def _description(target: object) -> str:
    if inspect.isclass(target) or inspect.isfunction(target):
        return f"it takes {_show(positional_names(target) or ())}"
    return f"it is a {type(target).__name__}"


def _show(names: tuple[str, ...]) -> str:
    return f"({', '.join([*names, '*, options'])})"
