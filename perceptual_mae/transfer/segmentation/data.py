"""Images with a class for each pixel: ADE20K's layout, CamVid's, or any folder of images and masks."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors

from perceptual_mae.config.from_signature import Choice
from perceptual_mae.data.decoding import read_image, read_mask
from perceptual_mae.data.image_tree import check_root
from perceptual_mae.errors import UserError
from perceptual_mae.transfer.headers import check_each, header_size, is_same_size

IGNORED = 255
"""The class of pixels that count neither in losses nor in scores, whatever number files have for them."""
WRONG = 254
MOST_CLASSES = 254
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CAMVID_CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
NumClasses = Annotated[int, Field(ge=2, le=MOST_CLASSES)]
FileId = Annotated[int, Field(ge=0, le=255)]
Pair = tuple[Path, Path]


class SegmentationData:
    """Images and masks of a split by index, as tv_tensors: uint8 (3, H, W), and classes uint8 (H, W).

    Masks have classes from 0 on, and IGNORED; `ids` are the numbers that files have for the classes, `ignored_ids`
    those that are not counted. Reading one raises UserError that names the file where it holds other numbers or has
    another size than its image.
    """

    def __init__(
        self, pairs: Sequence[Pair], classes: Sequence[str], ids: Sequence[int], ignored_ids: Sequence[int]
    ) -> None:
        self.pairs, self.classes, self.ids = list(pairs), tuple(classes), tuple(ids)
        table = torch.full((256,), WRONG, dtype=torch.uint8)
        table[list(ignored_ids)] = IGNORED
        table[list(ids)] = torch.arange(len(ids), dtype=torch.uint8)
        self._table = table

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image_path, mask_path = self.pairs[index]
        image, stored = read_image(image_path), read_mask(mask_path)
        if image.shape[-2:] != stored.shape:
            (height, width), (rows, columns) = image.shape[-2:], stored.shape
            raise UserError(f"{mask_path}: is {columns} x {rows} pixels, its image {image_path} {width} x {height}")
        mask = self._table[stored.long()]
        if bool((mask == WRONG).any()):
            wrong = int(stored[mask == WRONG][0])
            raise UserError(
                f"{mask_path}: holds the number {wrong}, which is no class: those are {self.ids[0]} to {self.ids[-1]} "
                f"({len(self.ids)} classes); correct the mask, or what data says of classes and ignored numbers"
            )
        return tv_tensors.Image(image), tv_tensors.Mask(mask)

    def first(self, count: int | None) -> "SegmentationData":
        """Return the first images alone; None: all."""
        first = copy.copy(self)
        first.pairs = self.pairs[:count]
        return first

    def check_headers(self) -> None:
        """Check the headers of all files; raise UserError that names the first that cannot be trained on."""

        def flaw(pair: Pair) -> str | None:
            image, mask = map(header_size, pair)
            if is_same_size(image, mask):
                return None
            return f"{pair[1]}: is {mask[1]} x {mask[0]} pixels, its image {pair[0]} {image[1]} x {image[0]}"

        check_each(self.pairs, flaw, remedy="; correct or remove the file and its partner")

    def to_file_ids(self, classes: Tensor) -> Tensor:
        """Return the numbers that files have, uint8 (H, W), for classes (H, W)."""
        return torch.tensor(self.ids, dtype=torch.uint8)[classes.long().cpu()]

    def name(self, index: int) -> str:
        """Return the file name of an image."""
        return self.pairs[index][0].name


def ade20k(split: str, *, root: str) -> SegmentationData:
    """ADE20K's challenge layout: images/ and annotations/ with training/ and validation/, 150 classes from 1 on.

    Number 0 is not counted. Names of classes are read from objectInfo150.txt where it is there.

    Options:
        root: the folder ADEChallengeData2016, or the one it is in [none]
    """
    folder = _inside(root, "ADEChallengeData2016", "images")
    part = {"train": "training", "val": "validation", "test": "validation"}[split]
    pairs = _paired(folder / "images" / part, folder / "annotations" / part)
    return SegmentationData(pairs, _ade_names(folder), range(1, 151), (0,))


def camvid(split: str, *, root: str) -> SegmentationData:
    """CamVid in SegNet's layout: train/, val/ and test/, with their masks in trainannot/ and so on, 11 classes.

    Number 11 is not counted.

    Options:
        root: the folder with train/ and trainannot/, or the one above it [none]
    """
    folder = _inside(root, "camvid", "train")
    pairs = _paired(folder / split, folder / f"{split}annot")
    return SegmentationData(pairs, CAMVID_CLASSES, range(11), (11,))


def image_mask_pairs(
    split: str,
    *,
    root: str,
    images: str = "images",
    masks: str = "masks",
    classes: NumClasses | None = None,
    first: FileId = 0,
    ignored: tuple[FileId, ...] = (255,),
) -> SegmentationData:
    """Any folder of images and 8-bit PNG masks of the same base name: SPLIT/images and SPLIT/masks.

    Options:
        root: folder with train/ and val/ or test/; it may hold classes.txt, a name a line [none]
        images: folder of images in that of a split [ours]
        masks: folder of masks in that of a split [ours]
        classes: number of classes; null: the lines of classes.txt [none]
        first: number that masks have for the first class [ours]
        ignored: numbers of pixels that are not counted [ours]
    """
    folder = check_root(root, "give --root, the folder with train/ and val/")
    names = _names(folder / "classes.txt")
    if classes is None and not names:
        raise UserError(f"{folder}: has no classes.txt; set data.classes to the number of classes")
    count = classes or len(names)
    if count > MOST_CLASSES or first + count > 256:
        raise UserError(f"{count} classes from {first} on do not fit into 8-bit masks; at most {MOST_CLASSES} do")
    if clash := sorted({*ignored} & {*range(first, first + count)}):
        raise UserError(f"data.ignored: {clash[0]} is a class, too: those are {first} to {first + count - 1}")
    names = names if len(names) == count else [f"class {first + number}" for number in range(count)]
    pairs = _paired(folder / split / images, folder / split / masks)
    return SegmentationData(pairs, names, range(first, first + count), ignored)


SEGMENTATION_DATA: Mapping[str, Callable[..., SegmentationData]] = {
    "ade20k": ade20k,
    "camvid": camvid,
    "pairs": image_mask_pairs,
}


def num_classes(section: Choice) -> int:
    """Return how many classes a data set has, whether its images are there or not; UserError where nothing says so."""
    known = {"ade20k": 150, "camvid": len(CAMVID_CLASSES)}.get(section.kind) or section.options().get("classes")
    if known is None:
        named = _names(Path(section.options().get("root", "")).expanduser() / "classes.txt")
        known = len(named) or len(section.build("train").classes)
    return int(known)


def _inside(root: str, name: str, part: str) -> Path:
    """Return the folder that holds `part`: the root or a folder `name` in it."""
    folder = check_root(root, "give --root, the folder of the data set")
    inner = next((each for each in (folder, folder / name) if (each / part).is_dir()), None)
    if inner is None:
        raise UserError(f"{folder}: holds neither {part}/ nor {name}/{part}/; give --root, the folder of the data set")
    return inner


def _paired(images: Path, masks: Path) -> list[Pair]:
    """Return images with the masks of the same base name, sorted; UserError names an image that has none."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"{folder}: is no folder; give --root, the folder of the data set")
    by_stem = {path.stem: path for path in masks.iterdir() if path.suffix.lower() == ".png"}
    listed = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGES and path.name[0] != ".")
    if not listed:
        raise UserError(f"{images}: holds no images")
    without = [path for path in listed if path.stem not in by_stem]
    if without:
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        raise UserError(f"{without[0]}: has no mask {masks / without[0].stem}.png{more}; add it or remove the image")
    return [(path, by_stem[path.stem]) for path in listed]


def _ade_names(folder: Path) -> list[str]:
    """Return the names of objectInfo150.txt, the last of five columns."""
    try:
        lines = (folder / "objectInfo150.txt").read_text().splitlines()[1:]
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    return names if len(names) == 150 else [f"class {number}" for number in range(1, 151)]


def _names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return []
