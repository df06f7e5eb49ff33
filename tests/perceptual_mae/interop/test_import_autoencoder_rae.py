"""`pmae import` of diffusers' AutoencoderRAE: whole images, painted as the library paints them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import DEBUG, slow
from perceptual_mae import Run
from perceptual_mae.cli import main
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.interop.pretrained import complete, open_pretrained
from perceptual_mae.interop.stated import Settings
from rae_reference import MEAN, PUBLISHED, SMALL, STD, RaeReference, write_rae

WEIGHTS = "diffusion_pytorch_model.safetensors"


def run_import(source: Path, out: Path, *options: str) -> int:
    return main(["import", str(source), DEBUG, "--out", str(out), *options])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def images_for(sizes: dict[str, int]) -> torch.Tensor:
    shape = (2, 3, sizes["input_size"], sizes["input_size"])
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def whole(generator: MaskedAutoencoder, images: torch.Tensor) -> torch.Tensor:
    nothing = torch.zeros(len(images), generator.grid[0] * generator.grid[1], dtype=torch.bool)
    return generator(images, nothing).pyramid[0]


def in_float64(folder: Path) -> MaskedAutoencoder:
    """The generator of a folder whose positions were interpolated in float64, as its tensors are."""
    pretrained = open_pretrained(folder)
    generator = pretrained.generator(complete(pretrained, Settings())[0]).double()
    generator.load_state_dict({**generator.state_dict(), **pretrained.tensors})
    return generator


@pytest.mark.parametrize("names", [slow(4), 5])
@torch.no_grad()
def test_an_autoencoder_becomes_a_run_that_paints_what_the_library_paints(
    names: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, images = write_rae(tmp_path / "rae", names=names).double(), images_for(SMALL)
    assert run_import(tmp_path / "rae", tmp_path / "run") == 0
    printed, run = capsys.readouterr().out, Run(tmp_path / "run")
    ours = run.generator().double()
    assert (whole(ours, images) - theirs(images)).abs().max() < 1e-12
    assert (ours.encoder(images) - theirs.tokens(images)).abs().max() < 1e-12
    assert "its mask token was never trained" in printed
    config = run.config
    assert (config.masking.ratio, config.data.image_size, "l1" in config.losses) == (0.0, 224, True)
    assert (config.data.mean, config.data.std) == (MEAN, STD)
    assert config.generator.options()["decoder_class_token"] == "constant"
    assert json.loads((tmp_path / "run/environment.json").read_text())["started_from"]["form"] == "diffusers"


@pytest.mark.parametrize("input_size", [256, slow(160)])
@torch.no_grad()
def test_positions_of_another_input_size_are_interpolated_as_the_library_does(input_size: int, tmp_path: Path) -> None:
    sizes = SMALL | {"input_size": input_size}
    theirs, images = write_rae(tmp_path / "rae", sizes).double(), images_for(sizes)
    state = load_file(tmp_path / "rae" / WEIGHTS)
    save_file({name: value.double() for name, value in state.items()}, tmp_path / "rae" / WEIGHTS)
    assert (whole(in_float64(tmp_path / "rae"), images) - theirs(images)).abs().max() < 1e-12


@pytest.mark.parametrize("input_size", [224, 256])
@torch.no_grad()
@pytest.mark.slow
def test_the_library_itself_and_ours_compute_the_same(input_size: int, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = SMALL | {"input_size": input_size}
    write_rae(tmp_path / "rae", sizes)
    theirs = diffusers.AutoencoderRAE.from_pretrained(tmp_path / "rae").eval().double()
    theirs.save_pretrained(tmp_path / "again")
    images = images_for(sizes)
    assert (whole(in_float64(tmp_path / "again"), images) - theirs(images).sample).abs().max() < 1e-12


@pytest.mark.slow
def test_the_published_size_has_the_keys_and_shapes_of_the_published_file() -> None:
    from perceptual_mae.interop.key_maps import from_diffusers

    with torch.device("meta"):
        theirs = RaeReference(**PUBLISHED)
        ours = MaskedAutoencoder(
            (256, 256), 3, [0.5] * 3, [0.5] * 3, positions="learned", decoder_width=1152, decoder_depth=28,
            decoder_heads=16, decoder_mlp_ratio=4096 / 1152, decoder_class_token="constant",
        )  # fmt: skip
    held = {name: value.shape for name, value in from_diffusers(theirs.state_dict()).items()}
    needed = {name: value.shape for name, value in ours.state_dict().items()}
    computed = {"encoder.norm.weight", "encoder.norm.bias", "decoder.pos_embed", "decoder.mask_token"}
    assert needed.keys() - held.keys() == computed
    of_the_data = {"encoder.mean", "encoder.std", "encoder.pos_embed"}
    assert all(held[name] == needed[name] for name in needed.keys() - computed - of_the_data)
    assert held.keys() <= needed.keys()


def write_dinov2(folder: Path) -> None:
    write_rae(folder, encoder_type="dinov2")


def write_no_type(folder: Path) -> None:
    write_rae(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["encoder_type"]
    (folder / "config.json").write_text(json.dumps(config))


def write_siglip2_that_says_mae(folder: Path) -> None:
    write_rae(folder)
    state = {
        name.replace("encoder.layers.", "encoder.vision_model.encoder.layers."): value
        for name, value in load_file(folder / WEIGHTS).items()
    }
    save_file(state, folder / WEIGHTS)


def write_without_a_config(folder: Path) -> None:
    write_rae(folder)
    (folder / "config.json").unlink()


def write_other_patches(folder: Path) -> None:
    write_rae(folder)
    state = load_file(folder / WEIGHTS)
    state["decoder.decoder_pred.weight"] = torch.zeros(3 * 16 * 16, SMALL["decoder_width"])
    save_file(state, folder / WEIGHTS)


def write_an_odd_size(folder: Path) -> None:
    write_rae(folder, encoder_input_size=230)


def write_an_absurd_size(folder: Path) -> None:
    write_rae(folder, encoder_input_size=2**40)


def write_no_size(folder: Path) -> None:
    write_rae(folder, encoder_input_size="large")


def write_nan(folder: Path) -> None:
    write_rae(folder)
    state = load_file(folder / WEIGHTS)
    state["decoder.trainable_cls_token"][0, 0, 3] = float("nan")
    save_file(state, folder / WEIGHTS)


REFUSED = {
    write_dinov2: "with the encoder dinov2, which is no MAE; what fits: a masked autoencoder",
    write_no_type: "with the encoder dinov2, which is no MAE",  # what the library takes it to mean
    write_siglip2_that_says_mae: "with the encoder siglip2, which is no MAE",
    write_without_a_config: "says in config.json how large its images are; give its folder whole",
    write_other_patches: "paints patches of another size than the 32 pixels of its encoder's",
    write_an_odd_size: "images of 230 pixels (encoder_input_size), patches of 32",
    write_an_absurd_size: "images of 1099511627776 pixels (encoder_input_size)",
    write_no_size: "its JSON files do not say what diffusers says of a network",
    write_nan: "the tensor decoder.trainable_cls_token has values that are not finite",
}


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__)
def test_what_is_no_such_autoencoder_is_refused_in_one_line(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "rae")
    assert run_import(tmp_path / "rae", tmp_path / "run") == 2
    assert REFUSED[write] in error_of(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"rae"}


@pytest.mark.slow
def test_an_autoencoder_in_parts_is_one(tmp_path: Path) -> None:
    theirs, folder = write_rae(tmp_path / "rae"), tmp_path / "rae"
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = {name: f"diffusion_pytorch_model-{number % 2}.safetensors" for number, name in enumerate(sorted(state))}
    for part in set(names.values()):
        save_file({name: state[name] for name in names if names[name] == part}, folder / part)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))
    assert run_import(folder, tmp_path / "run") == 0
    decoder = Run(tmp_path / "run").generator().decoder
    assert torch.equal(decoder.pred.weight, theirs.decoder["decoder_pred"].weight)


def test_masks_are_not_for_a_decoder_without_mask_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rae(tmp_path / "rae")
    assert run_import(tmp_path / "rae", tmp_path / "run", "masking.ratio=0.75") == 2
    assert "masking.ratio follows from the weights" in error_of(capsys)


@pytest.mark.slow
def test_the_run_is_scored_drawn_and_probed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rae(tmp_path / "rae")
    run = tmp_path / "run"
    assert run_import(tmp_path / "rae", run) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--metrics", "psnr,ssim", "--limit", "8"]) == 0
    printed = capsys.readouterr().out
    assert "nothing was hidden: raw is what the generator paints, composite is the original" in printed
    assert "raw means little here" not in printed
    assert main(["visualize", str(run), "--count", "2", "--out", str(tmp_path / "grid.png")]) == 0
    assert main(["probe", str(run), "--seeds", "0", "--limit", "20", "--test-limit", "20"]) == 0
    assert main(["export", str(run), "--to", "safetensors", "--with-decoder", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--to", "transformers", "--with-decoder", "--out", str(tmp_path / "hub")]) == 2
    assert "transformers cannot hold generator.decoder_class_token: constant" in error_of(capsys)
