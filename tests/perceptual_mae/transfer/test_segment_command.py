"""`pmae segment`: what a person types, what is written, how it stops and goes on, and what comes of mistakes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from halves import SMALL, as_vit_b, pretrained, write_halves
from perceptual_mae.cli import main
from processes import run_two_processes
from transfer_commands import TransferCommand, stop_at, tensors_in

pytestmark = pytest.mark.usefixtures("no_waiting_for_disk_and_memory")
SEGMENT = TransferCommand("segment", "halves.yaml", "halves", SMALL)
words = SEGMENT.words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, images and a recipe."""
    folder = tmp_path_factory.mktemp("segment")
    pretrained(folder / "run")
    write_halves(folder / "halves", train=9, val=3)
    (folder / "halves.yaml").write_text("data: {kind: pairs}\n")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place, tmp_path / "here"))


@pytest.mark.slow
def test_scores_pictures_and_records_are_written_and_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(here, "--seeds", "0,1", "--save", "training.score_every=4")) == 0
    folder = here / "run" / "evaluation"
    assert {path.name for path in folder.iterdir()} == {
        "segment_halves.json",
        "segment_halves.png",
        *(f"segment_halves_seed_{seed}.{end}" for seed in (0, 1) for end in ("metrics.jsonl", "safetensors")),
    }
    report = json.loads((folder / "segment_halves.json").read_text())
    assert (report["kind"], report["run"], report["seeds"], report["classes"]) == ("segment", "run", [0, 1], 3)
    assert report["taps"] == {"blocks": [1, 1, 1, 2], "source": "standard", "norms": False}
    assert report["recipe"]["name"] == "halves"
    assert report["encoder_tensors"] == {"loaded": report["encoder_tensors"]["loaded"], "missing": 0}
    miou = report["scores"]["miou"]
    assert miou["mean"] == pytest.approx(sum(miou["by_seed"]) / 2, abs=1e-6)
    assert set(report["per_class"]) == {"red", "green", "blue"}
    lines = capsys.readouterr().out.splitlines()
    assert (
        "tensors loaded, none missing; maps of blocks [1, 1, 1, 2], the standard ones; pairs, 9 train and 3 val"
        in (lines[0])
    )
    assert any(line.startswith("| seed 1 ") for line in lines)
    assert any(line.startswith(f"| all {report['floor']['class']}") for line in lines)
    records = [json.loads(line) for line in (folder / "segment_halves_seed_1.metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in records] == [2, 4, 4, 6]
    assert set(records[2]) == {"step", "seed", "evaluation"}
    assert {"total", "losses", "learning_rate", "images_per_second", "images_seen"} <= set(records[0])


@pytest.mark.slow
def test_training_learns_the_classes(here: Path) -> None:
    long = ["schedule.steps=120", "schedule.warmup_steps=10", "optimizer.lr=5e-3", "encoder.drop_path=0"]
    easy = ["head.channels=16", "head.dropout=0", "augment.photometric=false", "--from-scratch"]
    assert main(words(here, *long, *easy)) == 0
    report = json.loads((here / "run/evaluation/segment_halves_scratch.json").read_text())
    assert report["scores"]["miou"]["mean"] > 0.7 > 2 * report["floor"]["miou"]
    assert (report["from_scratch"], report["recipe"]["optimizer"]["layer_decay"]) == (True, 0.8)  # as the words set it


@pytest.mark.slow
def test_half_precision_trains_nearly_the_same(here: Path) -> None:
    losses = {}
    for precision in ("no", "bf16"):
        assert main(words(here, f"training.precision={precision}", "--out", str(here / precision))) == 0
        report = json.loads((here / precision / "segment_halves.json").read_text())
        assert report["precision"] == precision
        losses[precision] = [each["total"] for each in report["curves"]["0"]]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["bf16"] != losses["no"]


@pytest.mark.slow
def test_an_msg_mae_hands_over_the_maps_of_its_skips(here: Path) -> None:
    pretrained(here / "msg", "mse", "generator.skips=true", "generator.depth=6")
    assert main(words(here, "schedule.steps=1", "schedule.warmup_steps=0", encoder="msg")) == 0
    report = json.loads((here / "msg/evaluation/segment_halves.json").read_text())
    assert report["taps"] == {"blocks": [3, 4, 5, 6], "source": "skips", "norms": True}


@pytest.mark.slow
def test_a_frozen_random_encoder_and_timms_are_yardsticks(here: Path) -> None:
    short = ["schedule.steps=1", "schedule.warmup_steps=0"]
    assert main(words(here, *short, "--from-scratch", "--freeze", "--save")) == 0
    folder = here / "run/evaluation"
    assert json.loads((folder / "segment_halves_scratch_frozen.json").read_text())["frozen"] is True
    assert main(words(here, *short, "--out", str(here / "timm"), encoder="timm:resnet18")) == 0
    report = json.loads((here / "timm/segment_halves.json").read_text())
    assert (report["run"], report["taps"]["source"], report["encoder_sha256"]) == ("timm:resnet18", "stages", None)


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_be_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(here / "halves/train")
    assert main(words(here, "--dry-run")) == 0
    text = capsys.readouterr().out
    for part in ("parameters: ", "steps: 6 of 4 images, poly", "  layer  3: learning rate 0.002, ", "memory: at least"):
        assert part in text
    assert "no images yet: " in text
    assert not (here / "run/evaluation").exists()
    one_pixel = ("augment.crop=[32,32]", "--dry-run")  # is what the backbone's last map has
    assert main(words(here, *one_pixel, encoder="timm:resnet18")) == 0


@pytest.mark.slow
def test_the_ade20k_recipe_is_complete_on_vit_b(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published numbers of parameters, from a run whose encoder is never allocated."""
    assert main(["segment", str(as_vit_b(here / "run")), "ade20k", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "head 67,963,542, auxiliary 1,808,534" in text
    assert "parameters: 163,877,228 (trunk 87,023,424, neck 7,081,728" in text  # the final norm's 1,536 are left out
    assert "steps: 160,000 of 16 images, poly from 0.0001" in text
    assert "layer  0: learning rate 3.7e-07" in text  # 1e-4 x 0.65^13


RESUMED = ("--seeds", "0,1", "--save", "head.norm=batch", "training.score_every=4", "training.accumulation=2")


@pytest.fixture(scope="module")
def unbroken(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return SEGMENT.unbroken(place, tmp_path_factory.mktemp("unbroken") / "here", *RESUMED)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 6, 9])  # in the first epoch, between two records, at the end, of the next seed
def test_a_stopped_command_goes_on_to_the_same_bits(
    here: Path, step: int, unbroken: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    SEGMENT.assert_same_bits_after_a_stop(here, step, unbroken, capsys, *RESUMED)


@pytest.mark.slow
def test_another_recipe_does_not_go_on_from_what_was_stopped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stop_at(2):
        assert main(words(here)) == 130
    assert main(words(here, "optimizer.lr=1e-3")) == 2
    assert "is of a stopped command with other values of recipe.optimizer.lr" in capsys.readouterr().err
    assert main(words(here, "optimizer.lr=1e-3", "--fresh")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_two_processes_train_what_one_trains_but_for_batch_norm(here: Path, norm: str) -> None:
    """On CPUs batch norm takes each process's own images; on GPUs it is synchronised."""
    options = [f"head.norm={norm}", "--save", "schedule.steps=4", "training.log_every=1", "optimizer.lr=1e-4"]
    assert main(words(here, *options)) == 0
    one, record = tensors_in(here / "run/evaluation"), (here / "run/evaluation/segment_halves_seed_0.metrics.jsonl")
    losses = [json.loads(line)["total"] for line in record.read_text().splitlines()]
    report = json.loads((here / "run/evaluation/segment_halves.json").read_text())
    run_two_processes("-m", "perceptual_mae.cli", *words(here, *options, "--out", str(here / "two")))
    two = tensors_in(here / "two")
    others = [
        json.loads(line)["total"]
        for line in (here / "two/segment_halves_seed_0.metrics.jsonl").read_text().splitlines()
    ]
    matrices = [json.loads(path.read_text())["confusion"]["0"] for path in (here / "two").glob("*.json")]
    assert sum(map(sum, matrices[0])) == sum(map(sum, report["confusion"]["0"]))  # each pixel once
    (name,) = one
    gap = max(float((one[name][key] - two[name][key]).abs().max()) for key in one[name])
    if norm == "group":
        assert others == pytest.approx(losses, rel=1e-4)
        assert gap < 1e-4
    else:
        assert others != pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["optimizer.lrr=1"], "optimizer.lrr=1: optimizer.lrr: unknown key; allowed: lr, "),
        (["schedule.kind=polly"], "schedule.kind: found 'polly', must be one of poly, multi_step, cosine (did you"),
        (["head.norm=layer"], "head.norm: found 'layer', must be one of batch, group"),
        (["data.kind=cityscapes"], "data.kind: unknown layout 'cityscapes'; choose from: ade20k, camvid, pairs"),
        (["training.batch_size=5", "training.accumulation=2"], "5 is not a multiple of 1 process(es) x 2 micro-batch"),
        (["augment.crop=[36, 32]"], "36x32 pixels are no multiple of the encoder's patch size 8"),
        (["encoder.taps=[1, 2, 3, 4]"], "encoder.taps: is [1, 2, 3, 4]; give four blocks from 1 to 2"),
        (["evaluation.stride=[64, 64]"], "evaluation.stride: [64, 64] leaves pixels out"),
        (["camvid"], "are 2 recipes; choose one of ade20k, camvid, or a YAML file"),
        (["--root", "/nowhere"], "data.root: /nowhere is not a folder"),
        (["--seeds", "a"], "--seeds is 'a'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    place: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    SEGMENT.assert_mistake(place, more, message, capsys)


def test_a_damaged_mask_ends_the_training_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for path in (here / "halves/train/masks").iterdir():
        Image.new("L", (48, 40), 9).save(path)
    assert main(words(here)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "holds the number 9, which is no class: those are 0 to 2 (3 classes)" in error
