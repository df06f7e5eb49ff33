"""What the keys of a configuration mean, from the docstrings of the classes and functions whose options they are."""

import inspect
import re

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perceptual_mae.config.errors import fields_of


def describe_fields(model: type[BaseModel]) -> None:
    """Give the fields of a section the meanings that its docstring states."""
    meanings = option_docs(model)
    for name, field in fields_of(model).items():
        if name in meanings:
            field.description = meanings[name]
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


def first_line(target: object) -> str:
    """Return what a class or function is, in the first line of its docstring."""
    return (inspect.getdoc(target) or "").partition("\n")[0]
