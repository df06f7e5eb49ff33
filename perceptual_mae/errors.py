"""Exceptions that are one line to the user (mistakes, lost processes), and the nearest known word to a misspelt one."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's, in one line: what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class LostProcessError(RuntimeError):
    """A process that a command needs has died, in one line: which one, what is saved, how to go on.

    The command line prints the message without a traceback and exits with code 1.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest of the known words, or nothing where none is near."""
    near = nearest(word, known)
    return f" (did you mean {near!r}?)" if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant: equal but for case and punctuation, or nearly so."""
    plain = {re.sub(r"[^a-z0-9]", "", candidate.lower()): candidate for candidate in known}
    matches = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", word.lower()), plain, n=1, cutoff=0.7)
    return plain[matches[0]] if matches else None
