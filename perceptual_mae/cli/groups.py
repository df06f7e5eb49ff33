"""An option that takes several words: `--against cifar10 mse training.epochs=3` is one group of layers."""

import shlex
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

OPTION = "--against"


class AgainstCommand(TyperCommand):
    """A command whose `--against` takes all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest: list[str] = super().parse_args(ctx, join_groups(args))
        return rest


def join_groups(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with those after each `--against` joined to one."""
    joined: list[str] = []
    group: list[str] | None = None
    for word in [*words, "-"]:
        if group is not None and not word.startswith("-"):
            group.append(word)
            continue
        if group:
            joined.append(shlex.join(group))
        group = [] if word == OPTION else None
        joined.append(word)
    return joined[:-1]


def split_group(group: str) -> list[str]:
    """Return the words of a joined group."""
    return shlex.split(group)
