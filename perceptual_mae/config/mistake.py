"""A mistake in a configuration and its line in the report. Nothing here imports torch or pydantic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from perceptual_mae.errors import nearest


@dataclass(frozen=True)
class Mistake:
    """A mistake and the dotted keys it depends on: one wrong key, or several that do not go together.

    A key such as `generator.*` stands for everything below. `unknown` is the last part of a key that does not exist,
    `children` are the keys of the mapping that stands there.
    """

    keys: tuple[str, ...]
    message: str
    suggestion: str | None = None
    unknown: str | None = None
    children: tuple[str, ...] = ()

    def under(self, prefix: str) -> "Mistake":
        return replace(self, keys=tuple(join(prefix, key) for key in self.keys))

    def depends_on(self, other: "Mistake") -> bool:
        """Tell whether this mistake may vanish once `other`, a single wrong key, is corrected."""
        wrong = other.keys[0].removesuffix(".kind")
        doubtful = [wrong]
        if other.suggestion:
            meant = join(wrong.rpartition(".")[0], other.suggestion)
            doubtful += [join(meant, child) for child in other.children] or [meant]
        return any(
            key == doubt or key.startswith(f"{doubt}.") or (key.endswith(".*") and doubt.startswith(key[:-1]))
            for key in self.keys
            for doubt in doubtful
        )


def unknown_key(
    key: str, name: str, value: object, allowed: Sequence[str], kind: str | None, inner_keys: Mapping[str, str]
) -> Mistake:
    """Return the mistake of a dotted key whose last part, `name`, does not exist.

    allowed: the keys there are in its place; kind: whose options they are, if a kind's; inner_keys: keys that belong
    into the value of one of them, with their dotted places.
    """
    owner = f"option of {kind} (null removes it)" if kind else "key"
    message = f"unknown {owner}; allowed: {', '.join(allowed)}"
    children = tuple(map(str, value)) if isinstance(value, Mapping) else ()
    return Mistake((key,), message, nearest(name, allowed) or inner_keys.get(name), unknown=name, children=children)


def unknown_entry(key: str, name: str, what: str, allowed: Sequence[str]) -> Mistake:
    """Return the mistake of an entry that does not exist in a section of named entries, such as losses."""
    message = f"unknown {what}; choose from: {', '.join(allowed)}"
    return Mistake((key,), message, nearest(name, allowed), unknown=name)


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def line_of(mistake: Mistake, origins: Mapping[str, str], origin: str, elsewhere: Mapping[str, str]) -> str:
    """Return the mistake's line of the report: who set the key, the key, what is wrong, what was probably meant.

    origins: who set which dotted key, in the order in which they were set; keys without an entry are `origin`'s. Of
    several keys that do not go together, the one that was set last is named. elsewhere: keys of other sections with
    their dotted places.
    """
    order = {key: place for place, key in enumerate(origins)}

    def last_set(key: str) -> str:
        """Return what was set last of a key; a mistake that depends on a whole section may be any option's."""
        section = key.removesuffix(".*")
        below = [other for other in origins if other.startswith(f"{section}.") and section != key]
        return max([section, *below], key=lambda other: order.get(other, -1))

    culprit = max(mistake.keys, key=lambda key: order.get(last_set(key), -1))
    set_last = culprit.removesuffix(".*")
    label = next((origins[key] for key in (last_set(culprit), *_upwards(set_last)) if key in origins), origin)
    meant = mistake.suggestion or (elsewhere.get(mistake.unknown or ""))
    hint = f" (did you mean {meant!r}?)" if meant else ""
    return f"{label}: {set_last}: {mistake.message}{hint}"


def _upwards(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
