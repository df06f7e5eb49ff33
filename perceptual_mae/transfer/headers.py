"""Headers of annotated files, checked before the first step: what cannot be trained on ends the command in one line."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from perceptual_mae.data.decoding import UnreadableImageError, read_header
from perceptual_mae.errors import UserError
from perceptual_mae.images import Size

THREADS = 16
"""Over a network each answer takes a while."""

Item = TypeVar("Item")


def check_each(items: Sequence[Item], flaw: Callable[[Item], str | None], *, remedy: str = "") -> None:
    """Call `flaw` with each item, in threads; raise UserError with the first that it returns and their number.

    A header that cannot be read is a flaw, too. remedy: the end of the message, which says what to do.
    """

    def flaw_of(item: Item) -> str | None:
        try:
            return flaw(item)
        except UnreadableImageError as error:
            return f"{error.path}: {error.reason}"

    with ThreadPoolExecutor(THREADS) as pool:
        flaws = [each for each in pool.map(flaw_of, items) if each]
    if flaws:
        more = f" (and {len(flaws) - 1} more)" if len(flaws) > 1 else ""
        raise UserError(f"{flaws[0]}{more}{remedy}")


def header_size(path: Path) -> Size:
    """Return height and width as the header says; raise UnreadableImageError where there is none."""
    header = read_header(path)
    return header.height, header.width


def is_same_size(one: Size, other: Size) -> bool:
    """Return whether two sizes agree; one of them may be of an image that is stored lying on its side."""
    return one in (other, other[::-1])
