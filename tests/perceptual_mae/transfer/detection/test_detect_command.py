"""`pmae detect`: what a person types, what is written, how it stops and goes on, and what comes of mistakes."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from halves import as_vit_b, pretrained
from perceptual_mae.cli import main
from perceptual_mae.transfer.detection.build import build_detector
from perceptual_mae.transfer.detection.config import DataSection, DetectConfig
from perceptual_mae.transfer.encoders import open_source
from perceptual_mae.transfer.recipes import read_recipe
from processes import run_two_processes
from small_coco import content_of, write_coco
from transfer_commands import TransferCommand

pytest.importorskip("pycocotools", reason="of the extra `transfer`")

SMALL = (
    *("encoder={image_size: 64, window: 3, drop_path: 0.3}", "augment.scale=[0.8, 1.6]"),
    "detector={channels: 16, hidden: 16, proposals: [40, 20], sampled: [16, 16], score_threshold: 0.01}",
    *("optimizer={lr: 2e-3, layer_decay: 0.8}", "schedule={kind: cosine, steps: 4, warmup_steps: 2}"),
    "training={batch_size: 2, precision: no, workers: 0, log_every: 2}",
    *("evaluation={batch_size: 2, pictures: 1}", "data.val_images=val", "data.val_annotations=instances_val.json"),
)
"""Overrides that make a recipe of seconds."""
DETECT = TransferCommand("detect", "boxes.yaml", "coco", SMALL)
words = DETECT.words
pytestmark = pytest.mark.usefixtures("no_waiting_for_disk_and_memory")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, images and a recipe."""
    folder = tmp_path_factory.mktemp("detect")
    pretrained(folder / "run")
    write_coco(folder / "coco", content_of(5), "train")
    write_coco(folder / "coco", content_of(3), "val")
    (folder / "boxes.yaml").write_text("data: {train_images: train, train_annotations: instances_train.json}\n")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place, tmp_path / "here"))


@pytest.mark.slow
def test_scores_pictures_results_and_records_are_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(here, "--seeds", "0,1", "--save", "training.score_every=3")) == 0
    folder = here / "run" / "evaluation"
    ends = ("metrics.jsonl", "safetensors", "detections.json")
    assert {path.name for path in folder.iterdir()} == {
        "detect_boxes.json",
        "detect_boxes.png",
        *(f"detect_boxes_seed_{seed}.{end}" for seed in (0, 1) for end in ends),
    }
    report = json.loads((folder / "detect_boxes.json").read_text())
    assert (report["kind"], report["run"], report["seeds"], report["classes"]) == ("detect", "run", [0, 1], 2)
    assert report["taps"] == {"blocks": [2], "source": "standard", "norms": False}
    assert (report["train_images"], report["test_images"]) == (5, 3)
    ap = report["scores"]["box_ap"]
    assert ap["mean"] == pytest.approx(sum(ap["by_seed"]) / 2, abs=1e-6)
    assert report["per_class"]["wide"]["objects"] == 2
    results = json.loads((folder / "detect_boxes_seed_0.detections.json").read_text())
    assert results
    assert {each["category_id"] for each in results} <= {2, 7}
    assert {each["image_id"] for each in results} <= {10, 11, 12}
    records = [json.loads(line) for line in (folder / "detect_boxes_seed_1.metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in records] == [2, 3, 4]
    assert set(records[0]["losses"]) == {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    lines = capsys.readouterr().out.splitlines()
    assert "maps of blocks [2], the standard ones; coco, 5 train and 3 val images" in lines[0]
    assert any(line.startswith("| mask, mean") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tables", "own"])
def test_four_taps_train_and_skips_are_handed_over(here: Path, recipe: str) -> None:
    run = "run" if recipe == "tables" else "msg"
    if run == "msg":
        pretrained(here / "msg", "mse", "generator.skips=true", "generator.depth=6")
    four = ["detector.neck=four_taps", "detector.norm=batch", "encoder.positions=sincos"]
    four.append(f"encoder.relative_positions={'tables' if recipe == 'tables' else 'none'}")
    assert main(words(here, *four, encoder=run)) == 0
    report = json.loads((here / run / "evaluation/detect_boxes.json").read_text())
    expected = {
        "run": {"blocks": [1, 1, 2, 2], "source": "standard", "norms": False},
        "msg": {"blocks": [3, 4, 5, 6], "source": "skips", "norms": True},
    }
    assert report["taps"] == expected[run]


@pytest.mark.slow
def test_a_frozen_random_encoder_and_timms_are_yardsticks(here: Path) -> None:
    assert main(words(here, "--from-scratch", "--freeze", "--save")) == 0
    folder = here / "run/evaluation"
    assert json.loads((folder / "detect_boxes_scratch_frozen.json").read_text())["frozen"] is True
    config, _ = read_recipe("detect", DetectConfig, [str(here / "boxes.yaml"), *SMALL])
    first, _ = build_detector(open_source(str(here / "run"), from_scratch=True), config, 2, 0)
    trained = load_file(folder / "detect_boxes_scratch_frozen_seed_0.safetensors")
    same = {name: bool(trained[name].equal(value)) for name, value in first.state_dict().items()}
    assert all(is_same for name, is_same in same.items() if name.startswith("backbone.trunk."))
    assert not all(is_same for name, is_same in same.items() if name.startswith("roi_heads."))
    timm = ["--out", str(here / "timm"), "detector.neck=four_taps"]
    assert main(words(here, *timm, encoder="timm:resnet18")) == 0
    report = json.loads((here / "timm/detect_boxes.json").read_text())
    assert (report["run"], report["taps"]["source"]) == ("timm:resnet18", "stages")


@pytest.mark.slow
def test_two_processes_score_each_image_once(here: Path) -> None:
    """Hardly trained: their losses are means over what each of them sampled, so weights differ from those of one."""
    options = ["schedule.steps=1", "schedule.warmup_steps=0", "optimizer.lr=1e-9"]
    assert main(words(here, *options)) == 0
    run_two_processes("-m", "perceptual_mae.cli", *words(here, *options, "--out", str(here / "two")))
    one, two = (
        json.loads((folder / "detect_boxes_seed_0.detections.json").read_text())
        for folder in (here / "run/evaluation", here / "two")
    )
    assert [each["image_id"] for each in one] == [each["image_id"] for each in two]
    assert [each["score"] for each in one] == pytest.approx([each["score"] for each in two], abs=1e-4)


@pytest.mark.slow
def test_training_finds_the_rectangles(here: Path) -> None:
    long = ["schedule.steps=150", "schedule.warmup_steps=10", "optimizer.lr=3e-3", "encoder.drop_path=0"]
    easy = ["augment.scale=[1.2, 1.4]", "training.batch_size=4", "encoder.window=null", "data.val_images=train"]
    easy.append("data.val_annotations=instances_train.json")  # what it was trained on: it can be memorised
    assert main(words(here, *long, *easy)) == 0
    report = json.loads((here / "run/evaluation/detect_boxes.json").read_text())
    assert report["scores"]["box_ap50"]["mean"] > 0.2
    assert report["scores"]["mask_ap50"]["mean"] > 0.2


RESUMED = ("--seeds", "0,1", "--save", "training.score_every=3", "training.accumulation=2", "detector.norm=batch")


@pytest.fixture(scope="module")
def unbroken(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return DETECT.unbroken(place, tmp_path_factory.mktemp("unbroken") / "here", *RESUMED)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 6])  # in the first epoch, in the second, of the next seed
def test_a_stopped_command_goes_on_to_the_same_bits(
    here: Path, step: int, unbroken: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    DETECT.assert_same_bits_after_a_stop(here, step, unbroken, capsys, *RESUMED)


RECIPES = {
    "coco_vitdet": (
        "parameters: 110,899,381 (trunk 85,888,256, neck 5,560,000, rpn 1,184,015, box_head 15,207,424",
        "steps: 184,375 of 64 images, multi_step from 0.0001 to 1e-06, warm-up 250",
        "layer  0: learning rate 9.69e-07",  # 1e-4 x 0.7^13
        "layer 12: learning rate 7e-05",
        "maps of blocks [12] (standard) of stride 16; 80 classes",
    ),
    "coco_mimdet": (
        "parameters: 118,678,541 (trunk 88,995,864, neck 10,231,552, rpn 1,184,015, box_head 15,207,424",
        "115,532,813 of them trained",  # positions are fixed
        "steps: 184,375 of 64 images, cosine from 8e-05",
        "layer  0: learning rate 8e-05",
        "maps of blocks [3, 6, 9, 12] (standard)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_published_recipe_is_complete_on_vit_b(here: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    as_vit_b(here / "run")
    assert main(["detect", str(here / "run"), recipe, "--dry-run", "--root", str(here)]) == 0
    text = capsys.readouterr().out
    for part in (*RECIPES[recipe], "memory: at least", "no images yet: data.train_images"):
        assert part in text
    assert not (here / "run/evaluation").exists()


SUBSET = (
    *("data.train_images=train", "data.train_annotations=instances_train.json"),
    *("data.val_images=val", "data.val_annotations=instances_val.json"),
)


@pytest.fixture(scope="module")
def coco(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images of COCO, unpacked."""
    folder = tmp_path_factory.mktemp("coco")
    with zipfile.ZipFile(shared_data / "coco_instances.zip") as members:
        members.extractall(folder)
    return folder / "coco"


@pytest.mark.exhaustive
@pytest.mark.data
def test_a_vit_b_takes_a_step_of_two_images_of_coco_at_512_pixels(here: Path, coco: Path) -> None:
    """Two minutes on a core that others use, and 6 GB: this step, and the scoring of an image."""
    short = ["encoder.image_size=512", "schedule.steps=1", "schedule.warmup_steps=0", "schedule.milestones=[]"]
    few = ["training.batch_size=2", "training.workers=0", "training.log_every=1", "--limit", "2", "--test-limit", "1"]
    run = str(as_vit_b(here / "run"))
    options = [*SUBSET, *short, *few, "--root", str(coco), "--from-scratch", "--out", str(here / "out")]
    assert main(["detect", run, "coco_vitdet", *options]) == 0
    report = json.loads((here / "out/detect_coco_vitdet_scratch_2_1.json").read_text())
    assert (report["classes"], report["train_images"], report["test_images"]) == (80, 2, 1)
    # The tables of the four global blocks are of 32 x 32 patches, not of 64 x 64.
    assert sum(report["parameters"].values()) == 110_899_381 - 4 * 2 * 64 * 64
    (record,) = [json.loads(line) for line in (here / "out").glob("*.jsonl").__next__().read_text().splitlines()]
    assert set(record["losses"]) == {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    assert 4 < record["losses"]["classifier"] < 5  # ln 81 is 4.39
    assert (here / "out/detect_coco_vitdet_scratch_2_1.png").exists()


@pytest.mark.data
def test_the_subset_is_what_its_page_says(coco: Path) -> None:
    train, val = DataSection(root=str(coco), **dict(each.removeprefix("data.").split("=") for each in SUBSET)).open()
    assert (len(train), len(val), len(train.classes), train.degenerate) == (160, 80, 80, 0)
    objects = [each for data in (train, val) for image in data.images for each in image.objects]
    assert (len(objects), sum(each.is_crowd for each in objects)) == (1444 + 815, 14 + 11)
    areas = [each.area for image in val.images for each in image.objects]
    sizes = [sum(low <= area < high for area in areas) for low, high in ((0, 32**2), (32**2, 96**2), (96**2, 1e9))]
    assert sizes == [508, 232, 75]
    assert (train.category_ids[0], train.category_ids[-1]) == (1, 90)
    sample = train[0]
    assert sample.masks.shape == (len(sample.labels), *sample.image.shape[-2:])
    inside = [(mask.bool().any(0).nonzero()[0], box[0]) for mask, box in zip(sample.masks, sample.boxes, strict=True)]
    assert all(abs(float(column) - float(left)) <= 2 for column, left in inside)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["optimizer.lrr=1"], "optimizer.lrr=1: optimizer.lrr: unknown key; allowed: lr, "),
        (["detector.neck=five_taps"], "detector.neck: found 'five_taps', must be one of simple_pyramid, four_taps"),
        (["detector.norm=group"], "detector.channels: 16 do not fall into the 32 groups"),
        (["training.batch_size=5", "training.accumulation=2"], "5 is not a multiple of 1 process(es) x 2 micro-batch"),
        (["encoder.image_size=48"], "encoder.image_size: 48 is not a multiple of 32"),
        (["encoder.global_blocks=[2, 3]"], "encoder.global_blocks: is [2, 3]; give blocks from 1 to 2"),
        (["detector.neck=four_taps", "encoder.taps=[1, 2, 3, 4]"], "encoder.taps: is [1, 2, 3, 4]; give blocks"),
        (["evaluation.backend=coco"], "evaluation.backend: found 'coco', must be one of pycocotools"),
        (["data.train_images=images"], "coco/images is not a folder; give --root, or set data.train_images"),
        (["data.val_annotations=val.json"], "coco/val.json: No such file or directory; name the file of annotations"),
        (["augment.scale=[2, 1]"], "augment.scale: is [2.0, 1.0]; give the smallest factor first"),
        (["coco_subset"], "are 2 recipes; choose one of coco_mimdet, coco_subset, coco_vitdet, or a YAML file"),
        (["--root", "/nowhere"], "data.root: /nowhere is not a folder"),
        (["--seeds", "a"], "--seeds is 'a'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    place: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DETECT.assert_mistake(place, more, message, capsys)


def test_an_image_that_cannot_be_read_and_a_wrong_annotation_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = here / "coco/train/2.png"
    broken.write_bytes(b"no image")
    assert main(words(here)) == 2
    assert str(broken) in capsys.readouterr().err.splitlines()[-1]
    file = here / "coco/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [100, 100, 5, 5]
    file.write_text(json.dumps(content))
    assert main(words(here)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "annotation 1: (0.png) its bbox [100, 100, 5, 5] lies outside the image of 48x32 pixels" in line


def test_simple_pyramid_refuses_a_network_of_stages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place, "--out", str(place / "timm"), "--dry-run", encoder="timm:resnet18")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "simple_pyramid reads one map; set detector.neck=four_taps" in line
