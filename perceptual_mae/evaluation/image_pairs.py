"""Images of two folders, A and B, that pair up by their names."""

from collections.abc import Mapping, Sequence
from os.path import splitext

from perceptual_mae.data.image_files import ImageFiles
from perceptual_mae.errors import UserError
from perceptual_mae.images import Size

A, B = "A", "B"
WITHOUT_PAIRS = "--metrics fid,kid,is scores no pairs"


def pair_up(first: Sequence[str], second: Sequence[str]) -> dict[int, int]:
    """Return the place of its partner in `second` by the place of an image in `first`, in ascending order.

    Names are relative paths: equal ones pair up, then those that differ in their suffix alone. Raises UserError where
    two images of one folder could be the one of a pair.
    """
    places = {name: place for place, name in enumerate(second)}
    pairs = {place: places[name] for place, name in enumerate(first) if name in places}
    equal = {first[place] for place in pairs}
    stems = {folder: _by_stem(names, equal) for folder, names in ((A, first), (B, second))}
    for stem in stems[A].keys() & stems[B].keys():
        for folder, names in ((A, first), (B, second)):
            if len(several := stems[folder][stem]) > 1:
                raise UserError(
                    f"{folder} has {names[several[0]]} and {names[several[1]]}, of which one may pair up: remove the "
                    f"other, or {WITHOUT_PAIRS}"
                )
        pairs[stems[A][stem][0]] = stems[B][stem][0]
    return dict(sorted(pairs.items()))


def check_sizes(
    first: ImageFiles, second: ImageFiles, pairs: Mapping[int, int], sizes: Sequence[Sequence[Size | None]]
) -> None:
    """Raise UserError where the two images of a pair have different sizes; None is a size that is not known."""
    unequal = [
        (one, other)
        for one, other in pairs.items()
        if sizes[0][one] != sizes[1][other] and None not in (sizes[0][one], sizes[1][other])
    ]
    if unequal:
        one, other = unequal[0]
        shown, size = size_in_words(sizes[0][one]), size_in_words(sizes[1][other])
        raise UserError(
            f"{first.paths[one]} ({shown}) and {second.paths[other]} ({size}) pair up and differ in size "
            f"({len(unequal)} of {len(pairs)} pairs do): --size {size} scales and crops all images, {WITHOUT_PAIRS}"
        )


def size_in_words(size: Sequence[int] | None) -> str:
    """Return height and width as 192x256, the form of --size."""
    return "an unknown size" if size is None else "x".join(map(str, size))


def _by_stem(names: Sequence[str], but: set[str]) -> dict[str, list[int]]:
    """Return the places of names, other than those in `but`, by what is left of them without a suffix."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name not in but:
            places.setdefault(splitext(name)[0], []).append(place)
    return places
