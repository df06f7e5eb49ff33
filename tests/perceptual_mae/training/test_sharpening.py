"""`pmae sharpen`: the decoder is trained on, the encoder stays what it was."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conftest import DEBUG, debug_config, generator_of
from foreign_networks import BASE, write_mae
from perceptual_mae.cli import main
from perceptual_mae.errors import UserError
from perceptual_mae.run import checkpoint, folder
from perceptual_mae.run.run import Run
from perceptual_mae.training.loop import pretrain
from perceptual_mae.training.sharpening import EPOCHS, sharpening_config

SHORT = ["training.epochs=2", "training.epoch_images=48", "training.ema_kimg=0.1", "evaluation.every=0"]
QUICK = ["training.epochs=2", "training.epoch_images=8", "discriminator.base_channels=8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of mse with skips, which keeps averaged weights."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    pretrain(debug_config("mse", "generator.skips=true", *SHORT), path, quiet=True)
    return path


def states(path: Path) -> dict[str, torch.Tensor]:
    return Run(path).generator().state_dict()


def test_the_encoder_is_the_averaged_one_bit_for_bit_and_the_decoder_has_learnt(trained: Path) -> None:
    assert main(["sharpen", str(trained), *QUICK]) == 0
    before, after = states(trained), states(trained.with_name("trained-sharpened"))
    for name, value in before.items():
        is_constant = name.startswith("encoder.") or name.endswith("pos_embed")
        assert torch.equal(value, after[name]) == is_constant, name


def test_the_new_run_is_the_old_one_with_the_losses_of_a_method_and_a_share_of_the_images(trained: Path) -> None:
    config, before = sharpening_config(trained, ["ls_gan_p"], share=0.5), Run(trained).config
    assert config.generator.freeze_encoder
    assert config.generator.init_decoder
    assert config.generator.options() == before.generator.options()  # the form is the run's, not the method's
    assert (config.data, config.masking) == (before.data, before.masking)
    assert config.discriminator is not None
    assert config.losses == debug_config("ls_gan_p").losses
    assert config.training.epochs * (config.training.epoch_images or 0) == pytest.approx(0.5 * 2 * 48, abs=EPOCHS * 8)


def test_without_a_method_it_is_the_recommended_one(trained: Path) -> None:
    assert sharpening_config(trained, []).losses == debug_config("recommended").losses


@pytest.mark.slow
def test_a_fresh_decoder_starts_anew_and_may_replace_one_of_normalised_patches(tmp_path: Path, trained: Path) -> None:
    pretrain(debug_config("mse_norm_pix", *SHORT), tmp_path / "norm_pix", quiet=True)
    with pytest.raises(UserError, match="which no discriminator can be shown; give --decoder fresh"):
        sharpening_config(tmp_path / "norm_pix", [])
    config = sharpening_config(tmp_path / "norm_pix", [], decoder="fresh")
    assert not config.generator.norm_pix
    assert not config.generator.init_decoder
    assert main(["sharpen", str(tmp_path / "norm_pix"), "ls_gan", "--decoder", "fresh", *QUICK]) == 0
    before, after = states(tmp_path / "norm_pix"), states(tmp_path / "norm_pix-sharpened")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))


def test_an_exported_encoder_is_sharpened_with_a_recipe_of_its_size(trained: Path, tmp_path: Path) -> None:
    encoder = Run(trained).generator().encoder.export_state_dict()
    save_file(encoder, tmp_path / "encoder.safetensors")
    words = ["sharpen", str(tmp_path / "encoder.safetensors"), DEBUG, "ls_gan", "--decoder", "fresh", *QUICK]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    after = states(tmp_path / "out")
    assert all(torch.equal(value, after[f"encoder.{name}"]) for name, value in encoder.items())


@pytest.mark.slow
def test_a_sharpening_run_goes_on_after_a_stop(trained: Path, tmp_path: Path) -> None:
    config = sharpening_config(trained, ["ls_gan", *QUICK])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(config, whole, quiet=True)
    pretrain(config, parts, quiet=True)
    first, last = checkpoint.checkpoints(parts / "checkpoints")
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    (parts / "summary.json").unlink()
    assert first.exists()
    pretrain(config, parts, quiet=True)
    assert all(torch.equal(value, states(parts)[name]) for name, value in states(whole).items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{file}", "ls_gan"], "is no run's folder; give --decoder fresh, or make a run of it with pmae import"),
        (["{file}", "--decoder", "fresh"], "name the recipe of its images and size, such as cifar10"),
        (["{folder}/nothing"], "does not exist"),
        (["{trained}", "mse", "losses.uniformity=1"], "uniformity acts on the encoder alone, which is frozen"),
    ],
)
def test_what_cannot_be_sharpened_is_refused_in_a_line(
    arguments: list[str], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    places = {"file": tmp_path / "encoder.safetensors", "folder": tmp_path, "trained": trained}
    assert main(["sharpen", *(argument.format(**places) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def write_run(path: Path, *overrides: str, imported: bool = False) -> Path:
    """A run of four epochs of six images, which are at a place where there are none now."""
    images = ["data.kind=image_folder", f"data.root={path / 'images'}", "data.size=null", "data.num_images=null"]
    length = ["training.epochs=4", "training.epoch_images=null", "training.batch_size=1"]
    config = debug_config("mse", *images, *length, *overrides)
    path.mkdir()
    origin = {"path": "mae.pth", "form": "timm", folder.IMPORTED: True} if imported else None
    folder.describe(path, config, "cpu", "no", origin)
    metadata = {"step": 4, "images_seen": 0 if imported else 24} | ({} if imported else {"training_images": 6})
    checkpoint.save(path / "checkpoints", 4, {"generator": generator_of(config).state_dict()}, metadata)
    return path


def test_the_share_is_of_the_images_that_the_run_had_wherever_they_are_now(tmp_path: Path) -> None:
    config = sharpening_config(write_run(tmp_path / "run"), ["ls_gan", "data.root=elsewhere"], share=0.5)
    assert config.training.epochs * (config.training.epoch_images or 0) == 12


def test_how_long_imported_weights_are_sharpened_must_be_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", imported=True)
    asked = f"{run}: how long imported weights were trained is not known, and so no share of it; give training.epochs"
    for words, share in (([], None), (["ls_gan", "optimizer.lr=1e-3"], None), (["training.epochs=2"], 0.5)):
        with pytest.raises(UserError, match=re.escape(asked)):
            sharpening_config(run, words, share=share)
    (tmp_path / "layer.yaml").write_text("training: {epochs: 3}")
    for words, epochs in ((["training.epochs=2"], 2), ([str(tmp_path / "layer.yaml")], 3)):
        training = sharpening_config(run, words).training
        assert (training.epochs, training.epoch_images) == (epochs, None)  # whole ones


def test_a_dry_run_says_what_would_be_trained(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sharpen", str(trained), "--dry-run", "--out", "elsewhere"]) == 0
    printed = capsys.readouterr().out
    assert "freeze_encoder: true" in printed
    assert "would be written to elsewhere" in printed


PUBLISHED = "sharpen_published"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of images as of ImageNet: four to train on, two held out."""
    root = tmp_path_factory.mktemp("imagenet")
    for place, count in (("train/n01440764", 4), ("val/n01440764", 2)):
        (root / place).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((300, 260), 80).convert("RGB").save(root / place / f"{number}.jpg")
    return root


def test_the_published_weights_are_asked_for_by_their_name(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", PUBLISHED, f"data.root={photographs}", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"generator.init_from: {tmp_path / 'mae_pretrain_vit_base.pth'}: does not exist" in line


@pytest.mark.slow
def test_the_published_mae_is_sharpened_by_its_recipe(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mae(tmp_path / "mae_pretrain_vit_base.pth", "pretrain", BASE)
    images = [f"data.root={photographs}", "training.epoch_images=16", "--dry-run"]
    for command in (
        ["pretrain", PUBLISHED, "recommended", *images],
        ["sharpen", "mae_pretrain_vit_base.pth", PUBLISHED, "--decoder", "fresh", *images],
    ):
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert f"the encoder starts from {tmp_path / 'mae_pretrain_vit_base.pth'} (facebookresearch/mae)" in printed
        assert "freeze_encoder: true" in printed
        assert "discriminator: 6,962,369 parameters" in printed
        assert "steps: 16 = 16 epochs x 1" in printed


@pytest.mark.slow
def test_the_recipe_leaves_the_published_encoder_bit_for_bit(photographs: Path, tmp_path: Path) -> None:
    theirs = write_mae(tmp_path / "mae.pth", "pretrain", BASE | {"depth": 2})
    short = ["generator.depth=2", "generator.decoder_depth=2", "training.batch_size=2", "training.epochs=2"]
    short += ["training.epoch_images=2", "schedule.warmup_epochs=0", "evaluation.every=0", "evaluation.limit=2"]
    short += ["data.workers=0", f"generator.init_from={tmp_path / 'mae.pth'}", f"data.root={photographs}"]
    assert main(["pretrain", PUBLISHED, "recommended", *short, "--out", str(tmp_path / "run")]) == 0
    encoder = Run(tmp_path / "run").generator().encoder.export_state_dict()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in encoder.items() if name != "pos_embed")
