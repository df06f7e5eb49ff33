"""scripts/make_stl10_layout.py writes what the STL-10 data set reads."""

import json
import pickle
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceptual_mae.config.parsing import load_config
from perceptual_mae.data.stl10 import CLASSES, Stl10
from perceptual_mae.data.transforms import EvaluationTransform
from perceptual_mae.training.loop import pretrain

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts/make_stl10_layout.py"))
COLOURS = {"ship": (0, 0, 200), "frog": (0, 200, 0), "automobile": (200, 0, 0)}


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["make_stl10_layout.py", *map(str, words)])
    try:
        SCRIPT["main"]()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def paint(root: Path, counts: dict[str, int], size: tuple[int, int] = (32, 32)) -> Path:
    """Class folders of one colour each, the first pixel of each image brighter."""
    for name, count in counts.items():
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, COLOURS.get(Path(name).name, (90, 90, number))).save(folder / f"{number:02}.png")
    return root


def parts(root: Path) -> dict[str, Stl10]:
    given = {"unlabeled": ("train", False), "train": ("train", True), "test": ("test", False)}
    return {part: Stl10(split, root=str(root), labelled=labelled) for part, (split, labelled) in given.items()}


def test_class_folders_come_back_with_their_labels_sizes_and_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = paint(tmp_path / "mine", dict.fromkeys(COLOURS, 20), size=(40, 25))
    assert call(monkeypatch, source, tmp_path / "out", "--labelled", 0.25) == 0
    found = parts(tmp_path / "out")
    assert {part: len(dataset) for part, dataset in found.items()} == {"unlabeled": 41, "train": 13, "test": 6}
    expected = {CLASSES.index("ship"): "ship", 0: "frog", CLASSES.index("car"): "automobile"}  # 0 is the first free
    for part in ("train", "test"):
        for index in range(len(found[part])):
            image, label = found[part][index]
            assert image.shape == (3, 96, 96)
            assert torch.equal(image.amax((1, 2)), torch.tensor(COLOURS[expected[label]], dtype=torch.uint8))
    assert {found["unlabeled"][index][1] for index in range(41)} == {-1}
    names = (tmp_path / "out/stl10_binary/class_names.txt").read_text().split()
    assert [name for name in names if name in COLOURS] == ["frog", "automobile", "ship"]
    assert len(names) == len(set(names)) == 10
    printed = capsys.readouterr().out
    assert "41 unlabeled, 13 train, 6 test" in printed
    assert "next: pmae pretrain" in printed


def test_images_are_upright_and_as_evaluation_prepares_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for split in ("train", "test"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(pixels).save(tmp_path / "flat" / split / f"{number}.png")
    assert call(monkeypatch, tmp_path / "flat", tmp_path / "out", "--labelled", 0.5) == 0
    image, label = Stl10("test", root=str(tmp_path / "out"))[1]
    assert torch.equal(image, EvaluationTransform((96, 96))(torch.from_numpy(pixels).permute(2, 0, 1)))
    assert label == -1  # nobody said what it is


def test_cifar10_batches_are_upscaled_with_the_labels_that_both_sets_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # these have other MD5 sums
    random = np.random.default_rng(1)
    for name, count in {**{f"data_batch_{k}": 20 for k in range(1, 6)}, "test_batch": 20}.items():
        labels = (np.arange(count) % 10).tolist()
        data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    assert call(monkeypatch, tmp_path / "cifar", tmp_path / "out", "--images", 60, "--test-images", 15) == 0
    found = parts(tmp_path / "out")
    assert {part: len(dataset) for part, dataset in found.items()} == {"unlabeled": 54, "train": 6, "test": 15}
    places = SCRIPT["places_of"](names)
    assert places == {
        name: CLASSES.index({"automobile": "car", "frog": "monkey"}.get(name, name)) for name in names
    }  # the one class that STL-10 lacks takes the place of the one that CIFAR-10 lacks


def test_a_zip_is_unpacked_and_read_as_the_folder_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "mine", {"top/train/a": 8, "top/train/b": 8, "top/test/a": 2, "top/test/b": 2})
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for path in (tmp_path / "mine").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "mine"))
    assert call(monkeypatch, tmp_path / "mine.zip", tmp_path / "out", "--labelled", 0.25) == 0
    assert [len(dataset) for dataset in parts(tmp_path / "out").values()] == [12, 4, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{mine}", "{taken}"], "exists; it may be the real STL-10"),
        (["{mine}", "{out}", "--labelled", "1"], "--labelled is 1.0"),
        (["{many}", "{out}"], "has 11 classes, the layout has room for ten"),
        (["{mine}", "{out}", "--images", "2"], "none is left for"),
        (["{nothing}", "{out}"], "check the path and its permissions"),
    ],
)
def test_a_mistake_is_exit_two_and_nothing_is_written(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {name: tmp_path / name for name in ("mine", "many", "taken", "out", "nothing")}
    paint(names["mine"], {"a": 6, "b": 6})
    paint(names["many"], {f"class_{number:02}": 2 for number in range(11)})
    (names["taken"] / "stl10_binary").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert call(monkeypatch, *(word.format(**names) for word in words)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.data
@pytest.mark.parametrize("method", ["improved_mae", "improved_mae_original"])
def test_improved_mae_trains_on_a_layout_made_of_paintings(
    method: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, shared_data / "wikiart_paintings.zip", tmp_path / "layout") == 0
    small = ["training.epochs=1", "training.epoch_images=64", "training.batch_size=16", "training.precision=no"]
    small += ["data.workers=0", "evaluation.limit=32", "evaluation.probe_images=32", "training.log_every=1"]
    config = load_config(["stl10_improved_mae", method, f"data.root={tmp_path / 'layout'}", *small])
    summary = pretrain(config, tmp_path / "run", quiet=True)
    assert (summary["steps"], summary["num_images"]) == (4, 32)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    raw = next(record["raw"] for record in records if "raw" in record)
    extra = {"high_frequency", "uniformity"} if method == "improved_mae" else set()
    assert raw.keys() == {"mse"} | extra
