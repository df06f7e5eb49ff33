"""Write images of one's own in STL-10's binary layout, to try what reads STL-10 without its download.

    uv run python scripts/make_stl10_layout.py photographs data/stl10_like
    uv run pmae pretrain stl10_improved_mae improved_mae data.root=data/stl10_like

SOURCE is a folder or .zip of images, with class folders for labels and folders train and test where it has them, or the
folder of CIFAR-10's python batches. Images are scaled to cover 96x96 and cut in the middle. A share of the training
images, the same in every class, becomes the labelled part `train`, the others `unlabeled`.
"""

import argparse
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from perceptual_mae.data.cifar10 import BATCHES_FOLDER, Cifar10
from perceptual_mae.data.dataset import ImageDataset
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.image_tree import find_folder
from perceptual_mae.data.splits import FOLDER_NAMES
from perceptual_mae.data.stl10 import BINARY_FOLDER, CLASSES, IMAGE_BYTES
from perceptual_mae.data.subsets import Selection, label_of, limited, split_by_fractions
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.errors import UserError

TEST_SHARE = 0.1
"""Of a source that has no test images of its own."""
ALSO_CALLED = {"automobile": "car"}
NO_LABEL = 0
"""What stands in a file of labels, which count from 1, for an image without one."""


def open_source(folder: Path) -> tuple[ImageDataset, ImageDataset]:
    """Return the training and the test images of a folder."""
    if (folder / BATCHES_FOLDER).is_dir() or folder.name == BATCHES_FOLDER:
        return Cifar10("train", root=str(folder)), Cifar10("test", root=str(folder))
    held_out = find_folder(folder, (*FOLDER_NAMES["test"], *FOLDER_NAMES["val"]))
    if held_out is not None:
        train, test = (ImageFolder(split, root=str(folder), test=held_out.name) for split in ("train", "test"))
    else:
        shares = (1 - TEST_SHARE, 0.0, TEST_SHARE)
        train, test = (ImageFolder(split, root=str(folder), split_fractions=shares) for split in ("train", "test"))
    return train, test


def places_of(classes: Sequence[str]) -> dict[str, int]:
    """Return each class's place among STL-10's ten: its own where STL-10 has it, else the next that is free."""
    if len(classes) > len(CLASSES):
        raise UserError(f"SOURCE has {len(classes)} classes, the layout has room for ten; leave some out")
    own = {name: CLASSES.index(called) for name in classes if (called := ALSO_CALLED.get(name, name)) in CLASSES}
    free = [place for place in range(len(CLASSES)) if place not in own.values()]
    return own | dict(zip([name for name in classes if name not in own], free, strict=False))


def write_part(folder: Path, part: str, images: ImageDataset, places: dict[str, int]) -> int:
    """Write the images of a part, and their labels unless it is the unlabelled one; return how many could be read."""
    transform, labels = EvaluationTransform((96, 96)), list[int]()
    with (folder / f"{part}_X.bin").open("wb") as file:
        for index in track(range(len(images)), description=part):
            try:
                image, label = images[index]
            except UnreadableImageError as broken:
                print(f"left out an image that cannot be read: {broken}")
                continue
            file.write(transform(image).transpose(1, 2).contiguous().numpy().tobytes())  # column by column
            labels.append(NO_LABEL if label < 0 else places[images.classes[label]] + 1)
    if part != "unlabeled":
        np.array(labels, dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    return len(labels)


def write_layout(
    source: Path,
    out: Path,
    *,
    labelled: float = 0.1,
    images: int | None = None,
    test_images: int | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Write all parts below `out`/stl10_binary, complete or not at all; return the number of images of each."""
    folder = out / BINARY_FOLDER
    if folder.exists():
        raise UserError(f"{folder}: exists; it may be the real STL-10: name another OUT or remove it")
    if not 0 < labelled < 1:
        raise UserError(f"--labelled is {labelled}; it is a share of the training images between 0 and 1")
    train, test = open_source(source)
    train, test = limited(train, images), limited(test, test_images)
    places = places_of(train.classes)
    shares = split_by_fractions(
        [label_of(train, index) for index in range(len(train))], (1 - labelled, labelled, 0.0), seed
    )
    parts = {"unlabeled": Selection(train, shares["train"]), "train": Selection(train, shares["val"]), "test": test}
    if empty := [part for part, dataset in parts.items() if not len(dataset)]:
        raise UserError(f"{source}: too few images, none is left for {', '.join(empty)}; add some, or raise --labelled")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".stl10_", dir=out) as beside:
        written = {part: write_part(Path(beside), part, dataset, places) for part, dataset in parts.items()}
        named = dict(enumerate(CLASSES)) | {place: name for name, place in places.items()}
        (Path(beside) / "class_names.txt").write_text("".join(f"{named[place]}\n" for place in sorted(named)))
        Path(beside).chmod(0o755)
        Path(beside).rename(folder)
    return written


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a .zip and return the first folder in it that holds more than one folder."""
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--labelled", type=float, default=0.1, help="share of the training images that is `train`")
    parser.add_argument("--images", type=int, help="use that many training images, from a fixed shuffle")
    parser.add_argument("--test-images", type=int, help="use that many test images, from a fixed shuffle")
    parser.add_argument("--seed", type=int, default=0, help="which images are labelled")
    given = parser.parse_args()
    options = {"labelled": given.labelled, "images": given.images, "test_images": given.test_images, "seed": given.seed}
    try:
        with tempfile.TemporaryDirectory() as unpacked:
            source = unpack(given.source, Path(unpacked)) if zipfile.is_zipfile(given.source) else given.source
            written = write_layout(source, given.out, **options)
    except (UserError, OSError, zipfile.BadZipFile) as mistake:
        parser.error(str(mistake))
    told = ", ".join(f"{count} {part}" for part, count in written.items())
    print(f"{given.out / BINARY_FOLDER}: {told} ({sum(written.values()) * IMAGE_BYTES / 1e6:.0f} MB)")
    print(f"next: pmae pretrain stl10_improved_mae improved_mae data.root={given.out}")


if __name__ == "__main__":
    main()
