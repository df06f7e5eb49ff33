"""Shards give what a folder of the same images gives; what is wrong with one is a line with shard and member."""

import io
import itertools
import os
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.data import shard_index, shards
from perceptual_mae.data.dataset import files_sha256
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.data.image_folder import ImageFolder
from perceptual_mae.data.loading import Batch, EpochPlan, TrainLoader
from perceptual_mae.data.shard_index import SUFFIX, index_of
from perceptual_mae.data.shard_writing import write_shards
from perceptual_mae.data.shards import ShardFolder, Shards
from perceptual_mae.data.transforms import TrainTransform
from perceptual_mae.errors import UserError
from photographs import photos

TRANSFORM = TrainTransform((16, 16), color_jitter=0.2)


def png(value: int = 0, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def make_tar(path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of 48 images in two classes, and its shards, of which there are several."""
    root = tmp_path_factory.mktemp("pair")
    folder = photos(root / "photos")
    assert write_shards(folder, root / "shards", megabytes=0.07)[""] == (48, 5)
    return folder, root / "shards"


def test_every_split_of_shards_is_that_of_the_folder(pair: tuple[Path, Path]) -> None:
    root = pair[1]
    for split in ("train", "val", "test"):
        files, packed = (
            kind(split, root=str(path), holdout=0.2) for kind, path in zip((ImageFolder, Shards), pair, strict=True)
        )
        assert (packed.classes, len(packed)) == (("a", "b"), len(files))
        for index in range(len(files)):
            assert torch.equal(files[index][0], packed[index][0])
            assert files[index][1] == packed[index][1] == packed.label(index)
            assert packed.file_size(index) == files.file_path(index).stat().st_size
            assert packed.file_name(index).partition("/")[2] == files.file_name(index)
    assert files_sha256(Shards("train", root=str(root))) != files_sha256(Shards("train", root=str(root), holdout=0.2))


def batches(dataset: ImageFolder | Shards, workers: int, processes: int, first_step: int = 0) -> list[list[Batch]]:
    """Return, for each step of an epoch from one on, the micro-batches of all processes."""
    plan = EpochPlan(len(dataset), 8, seed=3)
    loaders = [
        TrainLoader(dataset, TRANSFORM, plan, seed=3, workers=workers, num_processes=processes, process_index=process)
        for process in range(processes)
    ]
    steps = zip(*(loader.epoch(2, first_step) for loader in loaders), strict=True)
    result = [[batch for (batch,) in step] for step in steps]
    for loader in loaders:
        loader.close()
    return result


def global_batch(step: list[Batch]) -> dict[str, torch.Tensor]:
    """Return a step's images in the order of the global batch, whoever read them."""
    by_process = [
        list(zip(*(getattr(batch, name) for name in ("indices", "labels", "images")), strict=True)) for batch in step
    ]
    samples = itertools.chain(*zip(*by_process, strict=True))
    return dict(zip(("indices", "labels", "images"), map(torch.stack, zip(*samples, strict=True)), strict=True))


@pytest.mark.parametrize(
    ("workers", "processes"),
    [(0, 1), (0, 2), (0, 4), (2, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((4, 1), (2, 2)))],
)
def test_global_batches_are_those_of_the_folder(pair: tuple[Path, Path], workers: int, processes: int) -> None:
    expected = [global_batch(step) for step in batches(ImageFolder("train", root=str(pair[0])), 0, 1)]
    steps = batches(Shards("train", root=str(pair[1])), workers, processes)
    assert len(steps) == len(expected) == 5
    for step, ours in enumerate(map(global_batch, steps)):
        assert all(torch.equal(ours[name], value) for name, value in expected[step].items()), step
    resumed = batches(Shards("train", root=str(pair[1])), workers, processes, first_step=3)
    assert torch.equal(global_batch(resumed[0])["images"], expected[3]["images"])


def test_a_process_opens_its_shards_itself(pair: tuple[Path, Path]) -> None:
    dataset = Shards("train", root=str(pair[1]))
    whole = dataset[0][0]
    files = dataset.images._files
    before = dict(files._files)
    if (child := os.fork()) == 0:
        same = torch.equal(dataset[0][0], whole) and not set(map(id, before.values())) & set(
            map(id, files._files.values())
        )
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert dict(files._files) == before
    assert torch.equal(dataset[0][0], whole)


def test_few_shards_are_open_at_once(pair: tuple[Path, Path]) -> None:
    dataset = ShardFolder(pair[1])
    with mock.patch.object(shards, "OPEN_FILES", 2):
        handles = {index: (dataset[index], len(dataset._files._files))[1] for index in range(len(dataset))}
    assert max(handles.values()) == 2


def test_an_index_says_where_members_lie_as_tarfile_does(tmp_path: Path) -> None:
    long = "folder.x/" * 20 + "image"
    members = [
        ("a/1.png", png(1)),
        ("a/1.cls", b"4\n"),
        ("._hidden.png", b"x"),
        (f"{long}.JPG", png(2)),
        (f"{long}.cls", b"0"),
    ]
    members += [("a/1.json", b"{}"), ("a/1.seg.png", png(9))]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        index = index_of(make_tar(tmp_path / f"{form}.tar", members, form))
        with tarfile.open(tmp_path / f"{form}.tar") as tar:
            found = [tar.getmember(name) for name in ("a/1.png", f"{long}.JPG")]
        assert index.offsets.tolist() == [member.offset_data for member in found]
        assert index.lengths.tolist() == [member.size for member in found]
        assert index.labels.tolist() == [4, 0]
        assert [index.name(number) for number in range(2)] == ["a/1.png", f"{long}.JPG"]


def test_an_index_is_kept_until_its_shard_changes(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "a.tar", [("1.png", png())])
    kept = shard.with_name(f"a.tar{SUFFIX}")
    assert len(index_of(shard)) == 1
    with mock.patch.object(shard_index, "read_members", side_effect=AssertionError("read again")):
        assert len(index_of(shard)) == 1
    make_tar(shard, [("1.png", png()), ("2.png", png())])
    assert len(index_of(shard)) == 2
    os.utime(shard, ns=(1, 1))  # the same size, another time
    with mock.patch.object(shard_index, "read_members", wraps=shard_index.read_members) as read:
        assert len(index_of(shard)) == 2
    assert read.call_count == 1
    for broken in (b"", b"no index", kept.read_bytes()[:200]):
        kept.write_bytes(broken)
        assert len(index_of(shard)) == 2


def test_the_index_of_a_read_only_folder_is_in_the_users_cache(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "data/a.tar", [("1.png", png())])
    real = shard_index.replacing

    def refuse(path: Path) -> object:
        if path.parent == shard.parent:
            raise OSError(30, "Read-only file system", str(path))
        return real(path)

    with mock.patch.object(shard_index, "user_cache", return_value=tmp_path / "cache"):
        with mock.patch.object(shard_index, "replacing", refuse):
            assert len(index_of(shard)) == 1
        assert [path.name for path in shard.parent.iterdir()] == ["a.tar"]
        with mock.patch.object(shard_index, "read_members", side_effect=AssertionError("read again")):
            assert len(index_of(shard)) == 1
    with mock.patch.object(shard_index, "replacing", side_effect=OSError(28, "No space left on device")):
        assert len(index_of(shard)) == 1  # kept nowhere, and made again


def test_two_writers_index_a_shard_once(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "a.tar", [(f"{number}.png", png()) for number in range(50)])
    with mock.patch.object(shard_index, "read_members", wraps=shard_index.read_members) as read:
        threads = [threading.Thread(target=index_of, args=(shard,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert read.call_count == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", f"a.tar{SUFFIX}"]


GOOD = [
    (f"{number}{extension}", content) for number in range(3) for extension, content in ((".png", png()), (".cls", b"1"))
]
BROKEN = {
    "partner of a label": ([*GOOD, ("9.cls", b"0")], r"a\.tar: 9\.cls: no image has its key '9'"),
    "partner of another member": ([*GOOD, ("9.json", b"{}")], r"a\.tar: 9\.json: no image has its key '9'"),
    "a dot in a name": ([("x.v2.png", png())], r"a\.tar: x\.v2\.png: no image has its key 'x'"),
    "a label": ([*GOOD, ("9.png", png())], r"a\.tar: 9\.png: no label, unlike others of this shard"),
    "a label that is a word": ([("9.png", png()), ("9.cls", b"cat")], r"a\.tar: 9\.cls: 'cat' is no number of a class"),
    "one image of a key": ([*GOOD, ("1.jpg", png())], r"a\.tar: 1\.jpg: its key '1' has another image, 1\.png"),
    "images": ([], r"a\.tar: no image in this shard"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_shard_that_lacks_something_is_refused_in_a_line(tmp_path: Path, what: str) -> None:
    members, message = BROKEN[what]
    make_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message) as refusal:
        Shards("train", root=str(tmp_path), holdout=0)
    assert "\n" not in str(refusal.value)


def test_a_damaged_shard_names_the_last_sound_member(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "whole.tar", GOOD).read_bytes()

    def message(content: bytes) -> str:
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError) as refusal:
            index_of(tmp_path / "a.tar")
        return str(refusal.value).partition("a.tar: ")[2]

    assert message(whole[:700]).startswith("0.png: cut off")
    assert message(whole[:1024]).startswith("damaged after its member 0.png (cut off)")
    assert message(whole[:1100]).startswith("damaged after its member 0.png (cut off)")
    assert message(whole[:1024] + b"\x55" * 512 + whole[1536:]).startswith("damaged after its member 0.png (no header")
    assert message(b"no tar at all, but long enough for one" * 30).startswith("damaged at its start")
    assert message(b"").startswith("damaged at its start (empty file)")
    assert message(b"\x1f\x8b" + whole).startswith("a compressed shard cannot be read at random; unpack it (gzip -d")


def test_a_link_in_a_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("1.png")
        member.type, member.linkname = tarfile.SYMTYPE, "2.png"
        tar.addfile(member)
    with pytest.raises(UserError, match=r"a\.tar: 1\.png: no plain file; pack files, not links"):
        index_of(tmp_path / "a.tar")


def test_what_does_not_fit_between_shards_is_refused(tmp_path: Path) -> None:
    make_tar(tmp_path / "two/a.tar", [("1.png", png())])
    make_tar(tmp_path / "two/b.tar", [("0.png", png()), ("1.jpg", png())])
    with pytest.raises(UserError, match=r"b\.tar/1\.jpg: has the key of .*a\.tar/1\.png; rename one"):
        ShardFolder(tmp_path / "two")
    make_tar(tmp_path / "half/a.tar", GOOD)
    make_tar(tmp_path / "half/b.tar", [("7.png", png())])
    with pytest.raises(UserError, match=r"b\.tar/7\.png: no label, unlike others; add its \.cls"):
        ShardFolder(tmp_path / "half")
    make_tar(tmp_path / "names/a.tar", GOOD)
    (tmp_path / "names/classes.txt").write_text("one\n")
    with pytest.raises(UserError, match=r"a\.tar/0\.png: its label is 1, but classes\.txt names 1 classes"):
        ShardFolder(tmp_path / "names")
    with pytest.raises(UserError, match=r"no shard \(\*\.tar\) in .*; write some with pmae data shard"):
        Shards("train", root=str(tmp_path), holdout=0)


def test_every_damaged_shard_has_its_line(tmp_path: Path) -> None:
    for name in "abc":
        make_tar(tmp_path / f"{name}.tar", [(f"{name}.png", png())])
    for name in "ac":
        (tmp_path / f"{name}.tar").write_bytes(b"x" * 600)
    with pytest.raises(UserError) as refusal:
        ShardFolder(tmp_path)
    assert [line.split(": ")[0].rpartition("/")[2] for line in str(refusal.value).splitlines()] == ["a.tar", "c.tar"]


def test_an_unreadable_image_names_shard_and_member(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("1.png", png()), ("2.png", png()[:40]), ("3.png", b""), ("4.png", png(side=50))])
    dataset = Shards("train", root=str(tmp_path), holdout=0, max_pixels=2000)
    assert dataset[0][0].shape == (3, 8, 8)
    for index, reason in (
        (1, "no image of a known format"),
        (2, "an empty file"),
        (3, "50 x 50 pixels are more than 2,000"),
    ):
        with pytest.raises(UnreadableImageError, match=reason) as error:
            dataset[index]
        assert error.value.path == str(tmp_path / f"a.tar/{index + 1}.png")


def test_a_shard_that_shrinks_while_it_is_read_is_an_unreadable_image(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "a.tar", [("1.png", png())])
    dataset = Shards("train", root=str(tmp_path), holdout=0)
    os.truncate(shard, 520)
    with pytest.raises(UnreadableImageError, match="cut off: the shard has become shorter"):
        dataset[0]


def test_split_folders_of_shards_have_the_classes_of_the_training_shards(tmp_path: Path) -> None:
    make_tar(tmp_path / "train/a.tar", [*GOOD, ("5.png", png()), ("5.cls", b"2")])
    make_tar(tmp_path / "val/a.tar", GOOD)
    assert Shards("val", root=str(tmp_path)).classes == Shards("train", root=str(tmp_path)).classes == ("0", "1", "2")
    make_tar(tmp_path / "test/a.tar", [("5.png", png()), ("5.cls", b"3")])
    with pytest.raises(UserError, match=r"a\.tar/5\.png: its label is 3, but the training shards have 3 classes"):
        Shards("test", root=str(tmp_path))


@pytest.mark.slow
def test_a_dataset_pickles_without_its_open_files(pair: tuple[Path, Path]) -> None:
    import pickle

    dataset = Shards("train", root=str(pair[1]))
    first = dataset[0][0]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0][0], first)
