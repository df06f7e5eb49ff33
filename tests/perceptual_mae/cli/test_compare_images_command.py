"""`pmae compare-images`: what a person types, what is printed and written, and what comes of mistakes."""

import csv
import json
import shutil
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from perceptual_mae.cli import main
from perceptual_mae.data.decoding import read_image
from perceptual_mae.evaluation.metrics import lpips as lpips_metric
from perceptual_mae.loss_networks.lpips import lpips_trunk
from perceptual_mae.pretrained_weights import registry
from processes import run_two_processes

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight"
)


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody's weights but those that a test puts there."""
    monkeypatch.setenv("PMAE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "weights"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with 12 originals and as many outputs, of which one has another name."""
    rng = np.random.default_rng(0)
    for folder in ("outputs", "originals", "empty"):
        (tmp_path / folder).mkdir()
    for number in range(12):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((40, 40))
        picture.save(tmp_path / "originals" / f"{number:02}.png")
        name = f"{number:02}.webp" if number else "other.webp"
        picture.point(lambda value: value * 0.8).save(tmp_path / "outputs" / name, lossless=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Moments(torch.nn.Module):
    """Mean and variance of each channel (B, 6)."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images.flatten(2).var(dim=2)], 1)


@pytest.fixture
def moments(here: Path) -> list[str]:
    torch.jit.script(Moments()).save("moments.ts")
    return ["--features", "moments.ts", "--trust-code"]


def test_a_table_is_printed_and_a_report_and_a_line_a_pair_are_written(
    moments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare-images", "outputs", "originals", "--metrics", "psnr,ssim,fid,kid", *moments]
    assert main([*words, "--out", "new/scores.json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(Path("new/scores.json").read_text())
    assert printed[0] == "A: outputs, 12 images; B: originals, 12 images; 11 pairs by name; 40x40"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed[2:]]
    assert cells[0] == ["", "pairs", "A", "B"]
    assert ["PSNR, dB", f"{report['scores']['pairs']['psnr']:.2f}", "", ""] in cells
    of_sets = [report["scores"][name]["fid[moments.ts]"] for name in ("A", "B")]
    assert of_sets[1] is None  # halves of 6 images for 6 features
    assert ["FID, moments.ts", "", f"{of_sets[0]:.2f}", "-"] in cells
    assert any(line.endswith("against the images of B; B: one half of them against the other") for line in printed)
    assert printed[-1] == "written to new: scores.json, scores.csv (a line a pair)"
    with Path("new/scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines] == [f"{number:02}.webp" for number in range(1, 12)]
    mean = sum(float(line["pairs_psnr"]) for line in lines) / len(lines)
    assert mean == pytest.approx(report["scores"]["pairs"]["psnr"], abs=1e-3)
    assert report["feature_networks"]["moments.ts"]["sha256"] == registry.sha256_of(Path("moments.ts"))
    assert {"seed", "sizes", "transform", "versions", "networks"} <= report.keys()
    assert len(report["A"]["files_sha256"]) == 64


def test_without_out_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    assert main(["compare-images", "outputs", "originals"]) == 0
    printed = capsys.readouterr().out
    assert "fid[inception] is unavailable" in printed
    assert "pmae weights fetch inception" in printed
    assert "next: --out FILE.json" in printed
    assert sorted(here.rglob("*")) == before


def test_names_that_do_not_pair_up_are_said_and_scores_of_sets_remain(
    moments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outputs").rename("elsewhere")
    shutil.copytree("elsewhere", "outputs/below")
    assert main(["compare-images", "outputs", "originals", *moments]) == 0
    printed = capsys.readouterr().out
    assert "0 pairs by name" in printed
    assert "no names pair up: scores of pairs, such as PSNR, are left out" in printed
    assert "PSNR, dB" not in printed
    assert "KID, moments.ts" in printed


def test_a_size_that_all_images_get_is_said_with_how_many_it_changed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open("originals/03.png") as picture:
        picture.resize((50, 44)).save("originals/03.png")
    assert main(["compare-images", "outputs", "originals"]) == 2
    assert "--size 44x50 scales and crops all images" in capsys.readouterr().err
    assert main(["compare-images", "outputs", "originals", "--size", "40"]) == 0
    printed = capsys.readouterr().out
    assert "11 pairs by name; 40x40" in printed
    assert "1 images had another size, and were scaled and cropped in the middle" in printed


def test_identical_images_count_with_the_ceiling(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare-images", "originals", "originals", "--metrics", "psnr"]) == 0
    assert "pairs: 12 images equal their originals and count with a PSNR of 100 dB" in capsys.readouterr().out


def test_an_older_report_stays_where_the_command_is_refused_and_is_replaced_where_it_is_not(here: Path) -> None:
    Path("scores.json").write_text("{}")
    assert main(["compare-images", "outputs", "originals", "--require", "fid", "--out", "scores.json"]) == 2
    assert Path("scores.json").read_text() == "{}"
    assert main(["compare-images", "outputs", "originals", "--metrics", "psnr", "--out", "scores.json"]) == 0
    assert json.loads(Path("scores.json").read_text())["pairs"] == 11


def test_too_many_images_that_cannot_be_read_are_refused_and_a_few_are_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outputs/05.webp").write_text("no image")
    assert main(["compare-images", "outputs", "originals", "--metrics", "psnr"]) == 0
    printed = capsys.readouterr().out
    assert "A: outputs, 12 images; B: originals, 12 images; 10 pairs by name" in printed
    assert "A: 1 images could not be read and were left out" in printed
    Path("outputs/06.webp").write_text("no image")
    assert main(["compare-images", "outputs", "originals", "--metrics", "psnr"]) == 2
    assert "2 of 12 images cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_lpips_is_that_of_its_package(weights: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    weights.mkdir()
    state = {f"features.{name.partition('.')[2]}": value for name, value in theirs.net.state_dict().items()}
    torch.save(state, weights / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setitem(lpips_metric.SHA256, "squeezenet1_1", None)
    assert lpips_trunk((32, 32), 3, net="squeeze", weights="random")
    words = ["compare-images", "outputs", "originals", "--require", "lpips_squeeze", "--out", "scores.json"]
    assert main(words) == 0
    pairs = [
        [read_image(path).float()[None] / 255 for path in (f"outputs/{number:02}.webp", f"originals/{number:02}.png")]
        for number in range(1, 12)
    ]
    with torch.no_grad():
        expected = np.mean([float(theirs(fake, real, normalize=True)) for fake, real in pairs])
    score = json.loads(Path("scores.json").read_text())["scores"]["pairs"]["lpips_squeeze"]
    assert score == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(moments: list[str]) -> None:
    words = ["compare-images", "outputs", "originals", "--metrics", "psnr,ssim,fid,kid", *moments, "--out"]
    assert main([*words, "one.json"]) == 0
    printed = run_two_processes("-m", "perceptual_mae.cli", *words, "both.json").stdout
    assert printed.count("pairs by name") == 1
    one, both = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "both"))
    assert both["scores"] == one["scores"]
    assert {**both, "per_image": None} == {**one, "per_image": None}
    assert Path("both.csv").read_bytes() == Path("one.csv").read_bytes()


@pytest.mark.data
@pytest.mark.slow
def test_the_more_a_photograph_is_compressed_the_worse_every_score(
    shared_data: Path, paintings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Argued beforehand: JPEG of quality 60 keeps more of a painting than quality 10, by pairs and as a set."""
    monkeypatch.chdir(tmp_path)
    originals = sorted((paintings / "test").rglob("*.jpg"))[::3]
    for path in originals:
        with Image.open(path) as picture:
            for quality in (60, 10):
                out = Path(f"q{quality}", path.relative_to(paintings / "test"))
                out.parent.mkdir(parents=True, exist_ok=True)
                picture.save(out, quality=quality)
        kept = Path("originals", path.relative_to(paintings / "test"))
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, kept)
    network = shared_data / "nets" / "imagenet_squeezenet1_0_fp16.safetensors"
    words = ["--metrics", "psnr,ssim,kid", "--features", f"torchvision:squeezenet1_0:{network},size=224,name=net"]
    scores = {}
    for quality in (60, 10):
        assert main(["compare-images", f"q{quality}", "originals", *words, "--out", "x.json"]) == 0
        report = json.loads(Path("x.json").read_text())
        assert report["pairs"] == len(originals)
        assert report["sizes"]["smallest_sides"] != report["sizes"]["largest_sides"]
        scores[quality] = report["scores"]
    assert scores[60]["pairs"]["psnr"] > scores[10]["pairs"]["psnr"] + 3
    assert scores[60]["pairs"]["ssim"] > scores[10]["pairs"]["ssim"]
    assert scores[60]["A"]["kid[net]"] < scores[10]["A"]["kid[net]"]
