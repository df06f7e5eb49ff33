"""Layers of a run: YAML files found by name or path, merged left to right, then `key=value` overrides.

The merge remembers which layer set which key, so that a mistake is reported with its place. Nothing here imports torch
or pydantic: a wrong name or a broken file is reported at once.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from perceptual_mae.errors import UserError, did_you_mean

BASE: Mapping[str, Any] = {
    "data": {"kind": "image_folder", "root": "data"},
    "masking": {"kind": "random"},
    "discriminator": {"kind": "ls_gan"},
    "losses": {
        "l1": {"weight": 1.0},
        "feature_matching": {"weight": 0.05, "when": "even_epochs"},
        "style": {"weight": 40.0, "when": "even_epochs"},
        "adversarial": {"kind": "least_squares", "weight": {"balanced": 0.1, "cap": 1.0}},
    },
}
"""What a run is before any layer: LS-GAN-P on the images of the folder `data`; other defaults stand in the schema."""

_REPLACED_WHOLE = ("losses", "penalties")  # a file that states its losses states all of them
_VALUES = ("weight", "when", "ratio")  # mappings that are one value: {balanced: 0.1} gives way to {from: 0, to: 1}


@dataclass(frozen=True)
class Shipped:
    """A configuration file that comes with the package: its name, title (first comment line) and expectation."""

    name: str
    path: Path
    title: str
    expectation: str


@dataclass
class Merged:
    """The values of all layers laid over BASE, and for each dotted key the layer or override that set it last."""

    values: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(dict(BASE)))
    origins: dict[str, str] = field(default_factory=dict)

    def merge(self, values: Mapping[str, Any], label: str) -> None:
        """Lay one layer on top; `label` is its name."""
        _merge(self.values, values, "", label, self.origins, override=False)

    def start_from(self, values: Mapping[str, Any]) -> None:
        """Lay values on top that nobody typed, such as those of a run's folder: they have no origin."""
        _merge(self.values, values, "", "", {}, override=False)

    @property
    def typed_kinds(self) -> frozenset[str]:
        """The kinds of one's own, `package.module:Class`, that layers and overrides named."""
        kinds = [value for key, value in flatten(self.values) if key.endswith("kind") and key in self.origins]
        return frozenset(kind for kind in kinds if isinstance(kind, str) and ":" in kind)

    def override(self, argument: str) -> None:
        """Lay one `section.key=value` on top; it merges into whatever is there."""
        key, _, text = argument.partition("=")
        parts = key.strip().split(".")
        if not all(parts):
            raise UserError(f"{argument}: an override is section.key=value, for example training.epochs=100")
        node, prefix = self.values, ""
        for part in parts[:-1]:
            if not isinstance(node.get(part), dict):
                node[part] = {}
                self.origins[f"{prefix}{part}"] = argument
            node, prefix = node[part], f"{prefix}{part}."
        _merge(node, {parts[-1]: _read_yaml(text, argument)}, prefix, argument, self.origins, override=True)


def merge_layers(arguments: Sequence[str]) -> Merged:
    """Return the layers among the arguments merged from left to right, then the overrides (those with a `=`)."""
    merged = Merged()
    for argument in arguments:
        if "=" not in argument:
            merged.merge(read_yaml(find_layer(argument)), argument)
    for argument in arguments:
        if "=" in argument:
            merged.override(argument)
    return merged


def find_layer(name: str) -> Path:
    """Return the file of a layer: a path if it ends in .yaml or .yml, else a shipped recipe or method of that name."""
    shipped = {layer.name: layer.path for layer in [*list_recipes(), *list_methods()]}
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name in shipped:
            return shipped[name]
        raise UserError(
            f"unknown layer {name!r}; choose from: {', '.join(shipped)}, or give a path ending in .yaml"
            + did_you_mean(path.name, shipped)
        )
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{name}: {problem}; give a YAML file or a shipped name" + did_you_mean(path.stem, shipped))
    return path


def list_recipes() -> list[Shipped]:
    """List the shipped recipes (data, model size, budget), the quick start first."""
    return _shipped(_folder()) + _shipped(_folder() / "recipes")


def list_methods() -> list[Shipped]:
    """List the shipped methods: rows of the paper's tables."""
    return _shipped(_folder() / "methods")


def list_layers(*folders: str) -> list[Shipped]:
    """List the shipped files of a folder below `configs`, such as "transfer", "segment"."""
    return _shipped(_folder().joinpath(*folders))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; an empty file is an empty mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    value = _read_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {_shorten(value)}, but must hold sections such as `training: {{epochs: 100}}`")
    return value


def read_comments(path: Path) -> dict[str, str]:
    """Return the comment at the end of each key's line, by dotted key; keys within a value of one line share its."""
    text = path.read_text(encoding="utf-8-sig")
    comments, lines = dict[str, str](), text.splitlines()

    def walk(node: yaml.Node | None, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            dotted, comment = f"{prefix}{key.value}", lines[key.start_mark.line].partition(" # ")[2]
            if comment:
                comments[dotted] = comment.strip()
            walk(value, f"{dotted}.")

    walk(yaml.compose(text, Loader=_Loader), "")
    return comments


def to_yaml(values: Mapping[str, Any], width: float = 120) -> str:
    """Return the mapping as YAML text that `read_yaml` reads back exactly; lines are broken at `width`."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, width=width, allow_unicode=True)


def _folder() -> Path:
    package = Path(__file__).parents[1]
    inside_wheel = package / "configs"
    return inside_wheel if inside_wheel.is_dir() else package.parent / "configs"


def _shipped(folder: Path) -> list[Shipped]:
    layers = []
    for path in sorted(folder.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = []
        for line in lines:
            if not line.startswith("#"):
                break
            comments.append(line.lstrip("# ").rstrip())
        title = comments[0] if comments else path.stem
        layers.append(Shipped(path.stem, path, title, " ".join(comments[1:])))
    return layers


def _merge(
    below: dict[str, Any], above: Mapping[str, Any], prefix: str, label: str, origins: dict[str, str], *, override: bool
) -> None:
    """Merge `above` into `below`, in place; `prefix` is the dotted place of both ("" or "losses.")."""
    for key, value in above.items():
        dotted = f"{prefix}{key}"
        if prefix == "losses." and isinstance(value, int | float) and not isinstance(value, bool):
            value = {"weight": value}  # a number is a weight for short
        is_name = prefix.startswith("losses.") and key == "network" and isinstance(value, str)
        if is_name:
            value = {"kind": value}  # and a network's name is its kind
        old = below.get(key)
        if isinstance(value, Mapping):
            if not isinstance(old, dict) or is_name or _replaces(dotted, old, value, override):
                _forget(origins, dotted)
                old = below[key] = {}
            origins.pop(dotted, None)  # the order of the keys is that in which they were set last
            origins[dotted] = label
            _merge(old, value, f"{dotted}.", label, origins, override=override)
        else:
            _forget(origins, dotted)
            below[key] = copy.deepcopy(value)
            origins[dotted] = label


def _replaces(dotted: str, old: Mapping[str, Any], new: Mapping[str, Any], override: bool) -> bool:
    if dotted.rpartition(".")[2] in _VALUES:
        return not old.keys() & new.keys()
    if override:
        return False
    other_kind = "kind" in new and new["kind"] != old.get("kind", new["kind"])
    return dotted in _REPLACED_WHOLE or other_kind


def _forget(origins: dict[str, str], dotted: str) -> None:
    for key in [key for key in origins if key == dotted or key.startswith(f"{dotted}.")]:
        del origins[key]


def _shorten(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers and words people mean: 1e-4 is a number; no, on and dates are text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in keys:
                problem = f"the key {key_node.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            keys.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line, and quotes text that either our reader or a YAML 1.1 reader would take for a value."""


_NUMERIC = list("-+.0123456789")
_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", _NUMERIC),
    ("float", r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", _NUMERIC),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "not YAML"
        raise UserError(f"{source}: {place}{problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from error


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """List a nested mapping as (dotted key, value), leaves only."""
    if not isinstance(tree, dict) or (not tree and prefix):
        return [(prefix, tree)]
    return [leaf for key, value in tree.items() for leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key))]
