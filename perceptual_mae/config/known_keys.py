"""Unknown keys refused before PyTorch is imported, by a table of all keys that an earlier command left in the cache.

The table is derived from the schema, which needs PyTorch (options are the parameters of networks and losses), and
counts only as long as no source file has changed. Where there is none, or where a place depends on a class of the
user's own, nothing is refused here: the full validation follows, which finds these mistakes and all others.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perceptual_mae.config.layers import Merged
from perceptual_mae.config.mistake import Mistake, join, line_of, unknown_entry, unknown_key
from perceptual_mae.errors import UserError
from perceptual_mae.files import user_cache, write_atomically


@dataclass(frozen=True)
class Keys:
    """The keys that a mapping may have; `kind`: whose options they are, if any; `inner_keys`: see `unknown_key`."""

    names: Sequence[str]
    kind: str | None
    inner_keys: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """The keys of every place of a configuration, as plain values.

    places: by dotted place ("" is the whole) and kind ("" where a place has none). default_kinds: of places with kinds,
    what is meant where none is named. entries: what the entries of a section of named ones are called. elsewhere: the
    keys of all sections with their dotted places.
    """

    places: Mapping[str, Mapping[str, Keys]]
    default_kinds: Mapping[str, str]
    entries: Mapping[str, str]
    elsewhere: Mapping[str, str]


def check_keys(merged: Merged) -> None:
    """Raise UserError for unknown keys where PyTorch is not imported yet and the table of keys is in the cache.

    The lines are those of the full validation for the same keys; mistaken values are found when all keys are known.
    """
    if "torch" in sys.modules or (table := _stored()) is None:
        return
    values = {key: value for key, value in merged.values.items() if value is not None}
    if mistakes := list(unknown_keys(values, table)):
        lines = [line_of(mistake, merged.origins, "configuration", table.elsewhere) for mistake in mistakes]
        raise UserError("\n".join(lines))


def unknown_keys(values: Mapping[str, Any], table: Table, place: str = "") -> Iterator[Mistake]:
    """Yield the unknown keys at a place and below, in the order of the full validation."""
    kind = values.get("kind", table.default_kinds[place]) if place in table.default_kinds else ""
    keys = table.places[place].get(kind) if isinstance(kind, str) else None
    if keys is None:
        return  # a kind of the user's own, or an unknown one

    def below(key: str) -> Iterator[Mistake]:
        if join(place, key) in table.places and isinstance(values.get(key), Mapping):
            yield from unknown_keys(values[key], table, join(place, key))

    if what := table.entries.get(place):
        for key, value in values.items():
            if key in keys.names:
                yield from below(key)
            elif place == "losses" and isinstance(value, Mapping) and ":" in str(value.get("kind")):
                continue  # a term of the user's own
            elif value is not None or place == "penalties":
                yield unknown_entry(join(place, key), key, what, keys.names)
        return
    for key in keys.names:
        yield from below(key)
    for key, value in values.items():
        if key not in keys.names and not (kind and value is None):  # null removes what is of another kind
            yield unknown_key(join(place, key), key, value, keys.names, keys.kind, keys.inner_keys)


def store(make_table: Callable[[], Table]) -> None:
    """Write the table to the cache unless it is there; where that is not possible, nothing happens."""
    with suppress(OSError):
        if _stored() is None:
            _file().parent.mkdir(parents=True, exist_ok=True)
            write_atomically(_file(), json.dumps({"fingerprint": _fingerprint(), **asdict(make_table())}))


def _stored() -> Table | None:
    try:
        tree = json.loads(_file().read_text())
        if tree.pop("fingerprint") != _fingerprint():
            return None
        places = {
            place: {kind: Keys(**keys) for kind, keys in kinds.items()} for place, kinds in tree.pop("places").items()
        }
        return Table(places, **tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none, or not one of ours


def _file() -> Path:
    return user_cache() / "perceptual-mae" / "keys.json"


def _fingerprint() -> str:
    """Return a hash of where the sources are and of their sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in _package_folders():
        for path in sorted(folder.rglob("*.py")):
            state = path.stat()
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _package_folders() -> list[Path]:
    specs = [find_spec(package) for package in ("perceptual_mae", "discriminators")]
    return [Path(folder) for spec in specs if spec for folder in spec.submodule_search_locations or ()]
