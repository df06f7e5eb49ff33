"""Nothing of a folder that is opened is executed without --trust-code; what needs no code works without it."""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from conftest import DEBUG
from perceptual_mae import Run
from perceptual_mae.cli import main
from perceptual_mae.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
SHORT = ("mse", "training.epochs=1", "training.epoch_images=8", "evaluation.limit=4", "evaluation.every=0")
DATA = "planted_parts:Images"

PLANTED = """
from pathlib import Path
from perceptual_mae.data.shapes import Shapes
Path("marker").touch()

class Images(Shapes): ...
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("theirs") / "run"
    assert main(["pretrain", DEBUG, *SHORT, "--out", str(path)]) == 0
    return path


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a stranger's module and two copies of a run, `theirs` and `plain`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "planted_parts", raising=False)
    Path("planted_parts.py").write_text(PLANTED)
    for name in ("theirs", "plain"):
        shutil.copytree(finished, name)
    return tmp_path


def plant(**sections: dict[str, object]) -> None:
    """Change sections of the configuration in the folder `theirs`."""
    path = Path("theirs/config.yaml")
    values = yaml.safe_load(path.read_text())
    for name, section in sections.items():
        values[name] = values[name] | section if values[name] else section
    path.write_text(yaml.safe_dump(values))


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line of a refusal, with no trace of the module that it names."""
    (line,) = capsys.readouterr().err.splitlines()
    assert not Path("marker").exists()
    assert "planted_parts" not in sys.modules
    return line


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "theirs"],
        ["probe", "theirs"],
        ["knn", "theirs"],
        ["finetune", "theirs", "--recipe", "small"],
        ["visualize", "theirs"],
        ["visualize", "plain", "--beside", "plain2"],
        ["sharpen", "theirs"],
        ["sharpen", "theirs", "--dry-run"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_data_set_that_a_folder_names_is_not_imported(
    command: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(data={"kind": DATA})
    if "plain2" in command:
        Path("plain").rename("plain2")
        command = ["visualize", "theirs", "--beside", "plain2"]
    capsys.readouterr()
    assert main(command) == 2
    line = refused(capsys)
    assert f"data set is code that would be imported and run, {DATA}" in line
    assert "theirs/config.yaml" in line
    assert "--trust-code" in line
    assert not Path("theirs-sharpened").exists()
    assert not Path("theirs/evaluation").exists()


def test_an_encoder_is_transferred_without_the_code_that_its_folder_names(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(data={"kind": DATA})
    assert main(["segment", "theirs", "camvid", "--dry-run"]) == 0
    assert "parameters: " in capsys.readouterr().out
    assert not Path("marker").exists()


def test_a_masking_that_a_folder_names_is_not_imported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(masking={"kind": "planted_parts:masks"})
    for command in (["evaluate", "theirs"], ["visualize", "theirs"], ["sharpen", "theirs"]):
        assert main(command) == 2
        assert "masking is code that would be imported and run, planted_parts:masks" in refused(capsys)


PARTS = {
    "discriminator": {"discriminator": {"kind": "planted_parts:D", "width": 3}, "losses": {"adversarial": {}}},
    "augment": {
        "discriminator": {"kind": "ls_gan"},
        "losses": {"adversarial": {}},
        "augment": {"kind": "planted_parts:A"},
    },
    "term": {"losses": {"mine": {"kind": "planted_parts:term", "power": 2}}},
    "network": {"losses": {"style": {"network": {"kind": "planted_parts:N", "layers": [1]}}}},
}
"""Kinds that no score needs."""


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_what_needs_no_code_works_on_the_tensors_and_records_of_such_a_run(part: str, here: Path) -> None:
    plant(**PARTS[part])
    tensors = Run("theirs").generator().state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in Run("plain").generator().state_dict().items())
    assert main(["visualize", "theirs", "--count", "1"]) == 0
    assert main(["compare", "theirs", "plain", "--anyway"]) == 0
    assert main(["curves", "theirs", "plain", "--out", "curves.png"]) == 0
    assert main(["report", "theirs", "plain"]) == 0
    assert not Path("marker").exists()


def test_other_data_and_the_records_need_no_code_of_a_folder_that_names_a_data_set(here: Path) -> None:
    plant(data={"kind": DATA})
    assert main(["compare", "theirs", "plain", "--anyway"]) == 0
    assert main(["curves", "theirs", "--out", "curves.png"]) == 0
    assert main(["report", "theirs"]) == 0
    Image.new("RGB", (40, 40), "teal").save("photo.png")
    assert main(["embed", "theirs", "photo.png", "--out", "features.npz"]) == 0
    Path("shapes.yaml").write_text("data: {kind: shapes, size: 32, num_images: 8}\n")
    assert main(["evaluate", "theirs", "--data", "shapes.yaml", "--metrics", "psnr"]) == 0
    torch.save(Run("theirs").generator().encoder.export_state_dict(), "encoder.pt")
    assert not Path("marker").exists()


def test_the_configurations_that_a_bench_file_names_are_read_without_their_code(here: Path) -> None:
    measured = {"name": f"{DEBUG} mse data.kind={DATA}", "batch_size": 8, "milliseconds": {"median": 3.0}}
    bench = {"device": "cpu", "threads": 1, "rounds": 1, "configurations": [measured]}
    Path("bench.json").write_text(json.dumps(bench))
    assert main(["compare", "theirs", "plain", "--anyway", "--bench", "bench.json"]) == 0
    assert not Path("marker").exists()


@pytest.mark.slow
def test_a_run_may_start_from_the_tensors_of_such_a_folder(here: Path) -> None:
    plant(data={"kind": DATA})
    start = ["generator.init_from=theirs", "generator.init_decoder=true", "--out", "new"]
    assert main(["pretrain", DEBUG, *SHORT, *start, "--dry-run"]) == 0
    assert main(["pretrain", DEBUG, *SHORT, *start]) == 0
    assert not Path("marker").exists()


def test_a_resume_does_not_take_code_from_the_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(data={"kind": DATA})
    assert main(["pretrain", DEBUG, *SHORT, "--out", "theirs"]) == 2
    assert "theirs: holds a run with other values of data.kind" in refused(capsys)


def test_a_sweep_does_not_take_code_from_its_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["sweep", DEBUG, *SHORT, "--seeds", "0", "--out", "swept"]
    assert main([*sweep, "--dry-run"]) == 0
    cell = next(word.split(":")[0].split()[-1] for word in capsys.readouterr().out.splitlines() if "pretrain" in word)
    plant(data={"kind": DATA})
    shutil.copytree("theirs", cell)
    from perceptual_mae.sweep.folder import write_record

    write_record(Path("swept"), [DEBUG, *SHORT], [], [0], {})
    assert main([*sweep, "--dry-run"]) == 2
    assert "holds a run with other values of data.kind" in refused(capsys)


@pytest.mark.parametrize("allowed", [["--trust-code"], [f"data.kind={DATA}"]], ids=["flag", "typed"])
def test_the_flag_or_the_user_naming_the_kind_allows_it(allowed: list[str], here: Path) -> None:
    plant(data={"kind": DATA})
    assert main(["evaluate", "theirs", "--metrics", "psnr", *allowed]) == 0
    assert Path("marker").exists()


def test_the_flag_allows_sharpening_such_a_run(here: Path) -> None:
    plant(data={"kind": DATA})
    assert main(["sharpen", "theirs", "--trust-code", "--dry-run"]) == 0
    assert Path("marker").exists()


def test_a_run_of_ones_own_kinds_is_trained_resumed_and_scored(here: Path) -> None:
    own = [DEBUG, *SHORT, f"data.kind={DATA}", "--out", "own"]
    assert main(["pretrain", *own]) == 0
    assert main(["pretrain", *own]) == 0
    assert main(["evaluate", "own", "--metrics", "psnr"]) == 2
    assert main(["evaluate", "own", "--metrics", "psnr", "--trust-code"]) == 0
    with pytest.raises(UserError, match="trust_code=True"):
        Run("own").config.data.build("train")
    assert len(Run("own", trust_code=True).config.data.build("train")) == 96


# Files of features


class Writes(nn.Module):
    """Writes a file when it is run."""

    def forward(self, images: Tensor) -> Tensor:
        torch.save(images, "marker")
        return images.mean(dim=(2, 3))


class WritesWhenLoaded(nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.ones(1)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.mean, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.mean, self.training = state
        torch.save(self.mean, "marker")

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


class Touches:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("marker"),)


class Mean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def exported_with_a_pickle(path: Path) -> None:
    """Write an exported program whose sample inputs are a pickle that makes a file."""
    exported, pickled = io.BytesIO(), io.BytesIO()
    batch = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(Mean().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: batch},)), exported
    )
    torch.save({"planted": Touches()}, pickled)
    with zipfile.ZipFile(exported) as members, zipfile.ZipFile(path, "w") as changed:
        for name in members.namelist():
            changed.writestr(name, pickled.getvalue() if "sample_inputs" in name else members.read(name))


@pytest.fixture
def programs(here: Path) -> None:
    torch.jit.script(Writes()).save("writes.ts")
    torch.jit.script(WritesWhenLoaded()).save("loaded.pt")
    exported_with_a_pickle(Path("planted.pt2"))
    torch.save({"planted": Touches()}, "pickled.pt")
    Path("marker").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("features", "reported"),
    [
        ("writes.ts", "TorchScript is a program that would be run, and may write files; add --trust-code"),
        ("torchscript:loaded.pt", "TorchScript is a program that would be run, and may write files"),
        ("inception:loaded.pt", "TorchScript is a program that would be run, and may write files"),
        ("planted.pt2", "an exported program runs what is pickled in it when it is opened; add --trust-code"),
        ("pickled.pt", "is neither a TorchScript file nor an exported program"),
        ("cifar_resnet:pickled.pt", "a pickled network is not opened"),
        ("cifar_resnet:loaded.pt", "neither a safetensors file nor a state dict"),
        ("cifar_resnet:planted.pt2", "neither a safetensors file nor a state dict"),
        ("writes.ts,trust_code=yes", "no option 'trust_code'"),
    ],
)
def test_a_file_of_features_runs_nothing(
    features: str, reported: str, programs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", "plain", "--metrics", "kid", "--features", features]) == 2
    assert reported in refused(capsys)
    assert not Path("plain/evaluation").exists()


def test_two_folders_are_not_compared_through_a_program_of_a_stranger(
    programs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (number, 90, 90)).save(f"photos/{number}.png")
    words = ["compare-images", "photos", "photos", "--metrics", "kid", "--features", "writes.ts", "--out", "x.json"]
    capsys.readouterr()
    assert main(words) == 2
    assert "TorchScript is a program that would be run, and may write files; add --trust-code" in refused(capsys)
    assert not Path("x.json").exists()
    assert main([*words, "--trust-code"]) == 0
    assert Path("marker").exists()


@pytest.mark.parametrize("file", ["writes.ts", "loaded.pt", "planted.pt2"])
def test_the_flag_lets_such_a_file_run_and_the_plant_is_a_real_one(file: str, programs: None) -> None:
    main(["evaluate", "plain", "--metrics", "kid", "--features", file, "--trust-code"])
    assert Path("marker").exists()


@pytest.mark.parametrize("file", ["pickled.pt", "loaded.pt"])
def test_a_start_from_a_file_unpickles_nothing(file: str, programs: None, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    start = ["pretrain", DEBUG, *SHORT, f"generator.init_from={file}", "--out", "new"]
    for command in (start, [*start, "--dry-run"]):
        assert main(command) == 2
        assert "generator.init_from" in refused(capsys)
    assert main(["sharpen", file, DEBUG, "--decoder", "fresh", "--dry-run"]) == 2
    refused(capsys)
    assert not Path("new").exists()


def test_the_current_folder_shadows_nothing_unless_a_kind_is_imported(here: Path) -> None:
    assert main(["compare", "theirs", "plain", "--anyway"]) == 0
    assert str(here) not in sys.path
