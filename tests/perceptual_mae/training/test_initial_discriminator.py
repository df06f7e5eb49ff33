"""`discriminator.init_from`: a discriminator starts with published weights, whole or not at all."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import DEBUG, debug_config, slow
from nvidia_reference import nvidia_forward, nvidia_state
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.cli import main
from perceptual_mae.config.build import build_discriminator
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.pretrained_weights.registry import sha256_of
from perceptual_mae.report.comparison import compare
from perceptual_mae.run import checkpoint, folder
from perceptual_mae.run.signals import Interrupted
from perceptual_mae.schedules import Timetable
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.initial_discriminator import find_discriminator_start
from perceptual_mae.training.trainer import Trainer
from test_loop import stop_after, trained

SHORT = ("training.epochs=1", "training.epoch_images=16")
FITTING = (
    *("discriminator.kind=stylegan2", "discriminator.input=single", "discriminator.channel_base=256"),
    "discriminator.minibatch_group=4",
)
NOWHERE = Path("nowhere")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A plain state dict of NVIDIA's discriminator of 32 pixels."""
    path = tmp_path / "d.pt"
    torch.save({name: value.float() for name, value in nvidia_state(32, 256, "resnet").items()}, path)
    return path


def at_step_0(*arguments: str) -> Trainer:
    config = debug_config("ls_gan", *FITTING, *arguments)
    start = find_discriminator_start(config, NOWHERE)
    return build_trainer(config, make_accelerator(config, training=True), Timetable(8, 16, 1), None, start)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def dry_run(out: Path, *arguments: str) -> int:
    return main(["pretrain", DEBUG, "ls_gan", *arguments, "--dry-run", "--out", str(out)])


@torch.no_grad()
def test_the_discriminator_computes_what_nvidias_does_at_step_0_and_the_generator_is_fresh(published: Path) -> None:
    trainer, fresh = at_step_0(f"discriminator.init_from={published}"), at_step_0()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = trainer.unwrapped_discriminator.double()([images.double()]).logits
    state = {name: value.double() for name, value in torch.load(published).items()}
    torch.testing.assert_close(logits, nvidia_forward(state, images.double() * 2 - 1, "resnet"))
    assert equal(trainer.unwrapped_generator.state_dict(), fresh.unwrapped_generator.state_dict())


@pytest.mark.slow
def test_a_run_says_what_its_discriminator_started_from_and_needs_it_no_more(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = sha256_of(published)
    monkeypatch.chdir(tmp_path)
    config = debug_config("ls_gan", *FITTING, "training.epoch_images=32", "discriminator.init_from=d.pt")
    pretrain(config, "unbroken", quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted, match="after step 3"):
            pretrain(config, "resumed", quiet=True)
    published.unlink()
    pretrain(config, "resumed", quiet=True)
    assert equal(trained(Path("unbroken")), trained(Path("resumed")))
    origin = {"path": str(published), "form": "NVIDIA's StyleGAN2", "sha256": sha256}
    for run in ("unbroken", "resumed"):
        assert json.loads(Path(run, "environment.json").read_text())["discriminator_started_from"] == origin
        assert f"the discriminator starts from {published} (NVIDIA's StyleGAN2)" in Path(run, "log.txt").read_text()
    pretrain(debug_config("ls_gan", *FITTING, "training.epoch_images=32"), "cold", quiet=True)
    with pytest.raises(UserError, match=r"discriminator\.init_from: .* \(cold\)|discriminator\.init_from: none"):
        compare([Path("unbroken"), Path("cold")], title="t")


@pytest.mark.slow
def test_a_discriminator_of_a_runs_checkpoint_serves_as_well(tmp_path: Path) -> None:
    pretrain(debug_config("ls_gan", *SHORT), tmp_path / "first", quiet=True)
    file = Run(tmp_path / "first").checkpoint / "discriminator.safetensors"
    config = debug_config("ls_gan_p", "training.seed=3", f"discriminator.init_from={file}")
    start = find_discriminator_start(config, NOWHERE)
    discriminator = build_discriminator(config.discriminator, config.data.image, 3)
    assert start is not None
    start.load(discriminator)
    assert equal(discriminator.state_dict(), checkpoint.load_tensors(file.parent, "discriminator"))


MISFITS = {
    "wider": (
        [*FITTING, "discriminator.channel_base=512"],
        "of another shape (first: blocks.0.conv0.bias, (8,) for (16,))",
    ),
    "larger images": ([*FITTING, "data.image_size=64"], "missing (first: blocks.3.conv0.bias)"),
    "without shortcuts": ([*FITTING, "discriminator.architecture=orig"], "3 unexpected (first: blocks.0.skip.weight)"),
    "on a pyramid": ([*FITTING, "discriminator.input=pyramid"], "missing (first: blocks.1.from_rgb.bias)"),
    "another kind": ([], "unexpected (first: blocks.0.conv0.bias)"),
}


@pytest.mark.parametrize("misfit", [misfit if misfit == "wider" else slow(misfit) for misfit in MISFITS])
def test_a_discriminator_that_does_not_fit_is_one_line_that_says_what_would(
    misfit: str, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, printed = MISFITS[misfit]
    assert dry_run(tmp_path / "run", *change, f"discriminator.init_from={published}") == 2
    line = error_of(capsys)
    assert f"discriminator.init_from: the discriminator of {published} (NVIDIA's StyleGAN2) does not fit" in line
    assert printed in line
    assert line.endswith(
        "set data.image_size=32 discriminator.kind=stylegan2 discriminator.input=single "
        "discriminator.architecture=resnet discriminator.channel_base=256 discriminator.max_channels=64 "
        "discriminator.stem=plain"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_a_misfit_proposes_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = nvidia_state(16, 1024, "skip")
    save_file({name: value.float() for name, value in state.items()}, tmp_path / "d.safetensors")
    start = f"discriminator.init_from={tmp_path / 'd.safetensors'}"
    assert dry_run(tmp_path / "run", start) == 2
    proposed = error_of(capsys).partition("; set ")[2].split()
    assert main(["pretrain", DEBUG, "ls_gan", *proposed, start, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    assert "the discriminator starts from" in capsys.readouterr().out


class Planted:
    """A pickle as NVIDIA publishes networks: a function of its package, called with the network's code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (str(self.path),)


def write_pickle(path: Path, planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(path: str) -> None:
        os.mkdir(path)

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    path.write_bytes(pickle.dumps({"D": Planted(planted)}))


@pytest.mark.parametrize("by", ["discriminator.init_from", slow("generator.init_from"), slow("import")])
def test_a_pickle_of_nvidias_is_not_run_and_the_remedy_is_said(
    by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pickle(tmp_path / "network.pkl", tmp_path / "planted", monkeypatch)
    out = tmp_path / "run"
    if by == "import":
        assert main(["import", str(tmp_path / "network.pkl"), DEBUG, "--out", str(out)]) == 2
    else:
        assert dry_run(out, f"{by}={tmp_path / 'network.pkl'}") == 2
    assert (
        "a pickle of NVIDIA's, which is a program and is not run; where you trust it and have its code, save a plain "
        "state dict: torch.save(pickle.load(open(FILE, 'rb'))['D'].state_dict(), 'd.pt')"
    ) in error_of(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"network.pkl"}


def conditional() -> dict[str, Tensor]:
    return nvidia_state(32, 256, "resnet") | {"b4.cmap.weight": torch.zeros(2, 2), "mapping.fc0.weight": torch.ones(1)}


def with_nan() -> dict[str, Tensor]:
    state = nvidia_state(32, 256, "resnet")
    state["b4.fc.weight"][3, 3] = float("nan")
    return state


REFUSED = {
    "of labels": (conditional, "holds b4.cmap.weight, mapping.fc0.weight"),
    "not finite": (with_nan, "the tensor b4.fc.weight has values that are not finite"),
    "without values": (lambda: {"b4.fc.weight": torch.zeros(0, 4)}, "the tensor b4.fc.weight has no values"),
    "a scalar": (lambda: {"b4.fc.bias": torch.tensor(1.0)}, "does not fit"),
    "another network's": (lambda: {"layer.weight": torch.ones(1)}, "1 unexpected (first: layer.weight)"),
}


@pytest.mark.parametrize("what", [what if what == "of labels" else slow(what) for what in REFUSED])
def test_what_is_no_such_discriminator_is_refused_in_one_line(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, printed = REFUSED[what]
    torch.save(make(), tmp_path / "d.pt")
    assert dry_run(tmp_path / "run", f"discriminator.init_from={tmp_path / 'd.pt'}") == 2
    line = error_of(capsys)
    assert "discriminator.init_from: " in line
    assert printed in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["run", "run/checkpoints/step_00000004"])
def test_of_a_run_it_is_the_file_in_a_checkpoint_that_must_be_named(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = debug_config("ls_gan")
    tensors = {"generator": {"x": torch.ones(1)}, "discriminator": {"x": torch.ones(1)}}
    (tmp_path / "run").mkdir()
    folder.describe(tmp_path / "run", config, "cpu", "no", None)
    file = checkpoint.save(tmp_path / "run/checkpoints", 4, tensors, {}) / "discriminator.safetensors"
    assert dry_run(tmp_path / "out", f"discriminator.init_from={tmp_path / place}") == 2
    line = error_of(capsys)
    assert f"discriminator.init_from: {tmp_path / place}: is a run's" in line
    assert line.endswith(f"give the file of its discriminator, {file}")


def test_a_run_refuses_it_before_it_writes(tmp_path: Path) -> None:
    config = debug_config("ls_gan", *FITTING, f"discriminator.init_from={tmp_path / 'gone.pt'}")
    with pytest.raises(UserError, match=r"discriminator\.init_from: .*gone\.pt: does not exist"):
        pretrain(config, tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert list(tmp_path.iterdir()) == []
