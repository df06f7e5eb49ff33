"""Folders of images packed into shards: the bytes of the files, in their order, with the numbers of their classes."""

import io
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from perceptual_mae.data.image_tree import ImageTree, class_names, find_folder
from perceptual_mae.data.shard_index import LABEL, SUFFIX, index_of, split_name
from perceptual_mae.data.shards import CLASSES_NAME
from perceptual_mae.data.splits import FOLDER_NAMES
from perceptual_mae.errors import UserError
from perceptual_mae.progress import OnProgress, no_progress

MEGABYTE = 10**6


def write_shards(
    folder: Path, out: Path, *, megabytes: float = 500, overwrite: bool = False, on_progress: OnProgress = no_progress
) -> dict[str, tuple[int, int]]:
    """Pack the images below a folder into shards below `out`; return the images and shards of each split.

    Split folders (train, val, test and the like) become folders of shards; without them "" is the only split. The same
    files make the same bytes. All of it is there in the end, or nothing. overwrite: shards that are there are replaced.
    Raises UserError where there is something else, or a file that is none.
    """
    _check_target(folder, out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent) as temporary:
        made = Path(temporary) / out.name
        made.mkdir()
        counts = _write_splits(folder, made, megabytes, on_progress)
        if out.exists():
            out.rename(Path(temporary) / "replaced")
        made.rename(out)
    return counts


def _write_splits(folder: Path, out: Path, megabytes: float, on_progress: OnProgress) -> dict[str, tuple[int, int]]:
    folders = {split: find_folder(folder, names) for split, names in FOLDER_NAMES.items()}
    others = [path for split, path in folders.items() if path is not None and split != "train"]
    source = folders["train"] or folder
    classes = class_names(source, exclude=others)
    trees = {"train" if folders["train"] else "": ImageTree(source, exclude=others)}
    trees |= {
        split: ImageTree(path, classes=classes or None)
        for split, path in folders.items()
        if path is not None and split != "train"
    }
    if classes:
        (out / CLASSES_NAME).write_text("".join(f"{name}\n" for name in classes))
    counts = {}
    for split, tree in trees.items():
        (out / split).mkdir(exist_ok=True)
        shards = _write_tree(tree, out / split, int(megabytes * MEGABYTE), f"{split or 'images'}, packed", on_progress)
        counts[split] = (len(tree), shards)
    return counts


def _write_tree(tree: ImageTree, out: Path, num_bytes: int, task: str, on_progress: OnProgress) -> int:
    """Write the shards of one folder, none above `num_bytes` unless by a single image; return how many there are."""
    tar, shards = None, list[Path]()
    try:
        for index, name in enumerate(_names(tree)):
            content = _content(tree, index)
            label = str(tree.label(index)).encode() if tree.classes else None
            if tar is None or (tar.offset > 0 and tar.offset + _in_blocks(content, label) > num_bytes):
                if tar is not None:
                    tar.close()
                shards.append(out / f"shard-{len(shards):06d}.tar")
                tar = tarfile.open(shards[-1], "w")  # noqa: SIM115
            _add(tar, name, content)
            if label is not None:
                _add(tar, f"{split_name(name)[0]}.{LABEL}", label)
            on_progress(task, index + 1, len(tree))
    finally:
        if tar is not None:
            tar.close()
    for shard in shards:
        index_of(shard)  # which also reads what was written
    return len(shards)


def _names(tree: ImageTree) -> Iterator[str]:
    """Yield the members' names of a tree's images: their paths, with one dot, and different keys."""
    taken = set[str]()
    for path in tree.paths:
        stem, suffix = posixpath.splitext(path)
        folder, base = posixpath.split(stem)
        plain = posixpath.join(folder, base.replace(".", "_"))
        key, number = plain, 1
        while key in taken:
            number += 1
            key = f"{plain}_{number}"
        taken.add(key)
        yield key + suffix.lower()


def _content(tree: ImageTree, index: int) -> bytes:
    path = tree.file_path(index)
    if not path.is_file():
        raise UserError(f"{path}: no file that can be packed (a broken link, or a device); remove it")
    return path.read_bytes()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time, owner and permissions are constants
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _in_blocks(content: bytes, label: bytes | None) -> int:
    """Return the bytes that an image and its label take in a tar, with their headers."""
    sizes = [len(content), *([] if label is None else [len(label)])]
    return sum(tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE)) for size in sizes)


def _check_target(folder: Path, out: Path, overwrite: bool) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'does not exist'}; give a folder of images")
    if out.resolve() == folder.resolve() or folder.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out: {out} holds the images; name another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder")
    files = [path for path in out.rglob("*") if not path.is_dir()]
    foreign = [path for path in files if path.name != CLASSES_NAME and path.suffix not in (".tar", SUFFIX)]
    if foreign:
        raise UserError(
            f"--out: {out} holds other files, such as {foreign[0].relative_to(out)}; name a folder of its own"
        )
    if files and not overwrite:
        raise UserError(f"--out: {out} holds shards already; replace them with --overwrite, or name another folder")
