"""`pmae import` and `generator.init_from`: files of other projects become runs, or are refused in one line."""

import argparse
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conftest import DEBUG, debug_config, slow
from foreign_networks import TINY, generator_like, images_of, randomise, write_mae
from perceptual_mae import Run, UserError
from perceptual_mae.cli import main
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import patchify
from perceptual_mae.interop import key_maps
from perceptual_mae.interop.pretrained import open_pretrained
from perceptual_mae.run.folder import claim
from perceptual_mae.training.initial_weights import open_start

STATISTICS = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
SAID = {
    "full": ["--heads", "2", "--decoder-heads", "4"],
    "visualise": ["--heads", "2", "--decoder-heads", "4", "--no-norm-pix"],
    "pretrain": ["--heads", "2"],
    "fine-tuned": ["--heads", "2"],
}


def run_import(source: Path, out: Path, *options: str) -> int:
    return main(["import", str(source), DEBUG, "--out", str(out), *options])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("parts", SAID)
@torch.no_grad()
def test_a_file_of_facebookresearch_mae_becomes_a_run(
    parts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = write_mae(tmp_path / "mae.pth", parts).double().eval()
    options = [*SAID[parts], "--layer-norm-eps", "1e-6", *STATISTICS]
    assert run_import(tmp_path / "mae.pth", tmp_path / "run", *options) == 0
    printed, run = capsys.readouterr().out, Run(tmp_path / "run")
    ours, images = run.generator().double(), images_of(TINY)
    assert run.config.discriminator is None
    assert run.config.generator.norm_pix == (parts == "full")
    kept = "" if parts == "visualise" else " --decoder fresh"  # one of plain pixels
    assert f"or pmae sharpen {tmp_path / 'run'}{kept} training.epochs=16\n" in printed
    assert run.config.generator.options()["positions"] == "sincos"
    noise = torch.rand(len(images), 16, generator=torch.Generator().manual_seed(2))
    tokens, prediction, mask = theirs(ours.encoder.normalise(images), noise)
    if parts in ("full", "visualise"):
        reconstruction = ours(images, mask.bool())
        assert (reconstruction.tokens[:, 0] - tokens[:, 0]).abs().max() < 1e-6  # positions and mean are float32
        assert (patchify(reconstruction.prediction[0], 8) - prediction).abs().max() < 1e-6
    else:
        assert "the decoder is drawn anew" in printed
        _, before = ours.encoder.encode(images, taps=(TINY["depth"],))
        whole = theirs(ours.encoder.normalise(images), noise, mask_ratio=0.0)[0]
        order = noise.argsort(dim=1).argsort(dim=1)[..., None].expand(-1, -1, whole.shape[2])
        patches = whole[:, 1:].gather(1, order)
        assert (ours.encoder.norm(before[TINY["depth"]])[:, 1:] - patches).abs().max() < 1e-6
    if parts == "fine-tuned":
        assert "not taken: encoder.head.weight, encoder.head.bias" in printed
        assert "fc_norm" in printed
    origin = json.loads((tmp_path / "run/environment.json").read_text())["started_from"]
    assert origin["form"] == "facebookresearch/mae"
    assert origin["path"] == str(tmp_path / "mae.pth")


def test_what_a_file_does_not_say_is_asked_for_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mae(tmp_path / "mae.pth", "visualise")
    assert run_import(tmp_path / "mae.pth", tmp_path / "run") == 2
    line = error_of(capsys)
    assert "does not say heads, layer_norm_eps, mean, std, decoder_heads, norm_pix" in line
    assert "--decoder-heads 16" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "printed"),
    [
        ("--image-size=nan", "--image-size is 'nan'; give numbers separated by 'x'"),
        ("--image-size=99999999", "do not go with images of 99999999x99999999 in patches of 8"),
        ("--image-size=-32", "do not go with images of -32x-32"),
        ("--mean=grey", "--mean is 'grey'; give numbers separated by ','"),
        ("--std=0,1,1", "3 positive standard deviations"),
        ("--layer-norm-eps=nan", "generator.layer_norm_eps"),
    ],
)
def test_options_that_no_network_has_are_refused_in_one_line(
    option: str, printed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_transformers(tmp_path / "vit_mae")
    assert run_import(tmp_path / "vit_mae", tmp_path / "run", option) == 2
    assert printed in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_a_full_checkpoint_says_its_model_and_its_targets(tmp_path: Path) -> None:
    write_mae(tmp_path / "mae.pth", "full")
    settings = open_pretrained(tmp_path / "mae.pth").settings
    assert (settings.heads, settings.decoder_heads) == (12, 16)  # those of mae_vit_base_patch16
    assert settings.norm_pix is True
    assert settings.image_size == (32, 32)
    assert settings.mask_ratio == 0.75


@pytest.mark.parametrize("junk", [{"input_size": -32}, {"input_size": 0}, {"mask_ratio": 7.0}])
def test_junk_in_the_options_of_a_training_script_is_one_line(
    junk: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mae(tmp_path / "mae.pth", "full")
    with torch.serialization.safe_globals([argparse.Namespace]):
        held = torch.load(tmp_path / "mae.pth")
    torch.save(held | {"args": argparse.Namespace(**vars(held["args"]) | junk)}, tmp_path / "mae.pth")
    options = [*SAID["full"], "--layer-norm-eps", "1e-6", *STATISTICS]
    assert run_import(tmp_path / "mae.pth", tmp_path / "run", *options) == 2
    assert f"{tmp_path / 'mae.pth'}: " in error_of(capsys)
    assert not (tmp_path / "run").exists()


def write_transformers(folder: Path, prefix: str = "vit.", **config: Any) -> MaskedAutoencoder:
    generator = generator_like(TINY)
    state = generator.state_dict()
    state = state if prefix else key_maps.encoder_of(state)
    folder.mkdir()
    named = {name: value.contiguous() for name, value in key_maps.to_transformers(state, prefix=prefix).items()}
    save_file(named, folder / "model.safetensors")
    content = {"model_type": "vit_mae" if prefix else "vit", "hidden_act": "gelu", "image_size": 32}
    content |= {"num_attention_heads": 2, "decoder_num_attention_heads": 4, "norm_pix_loss": True, "mask_ratio": 0.5}
    (folder / "config.json").write_text(json.dumps(content | config))
    processor = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return generator


def test_a_folder_of_transformers_needs_no_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = write_transformers(tmp_path / "vit_mae", layer_norm_eps=1e-6)
    assert run_import(tmp_path / "vit_mae", tmp_path / "run") == 0
    run = Run(tmp_path / "run")
    ours = run.generator()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert (ours.norm_pix, ours.layer_norm_eps, run.config.masking.ratio) == (True, 1e-6, 0.5)
    assert "mse" in run.config.losses


@pytest.mark.parametrize("stated", [1e-12, None])
def test_the_epsilon_is_what_the_config_says_or_transformers_default(stated: float | None, tmp_path: Path) -> None:
    write_transformers(tmp_path / "vit_mae", **({} if stated is None else {"layer_norm_eps": stated}))
    assert run_import(tmp_path / "vit_mae", tmp_path / "run") == 0
    generator = Run(tmp_path / "run").generator()
    norms = [module for module in generator.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-12}


def test_a_given_setting_wins_over_the_files_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_transformers(tmp_path / "vit_mae")
    assert run_import(tmp_path / "vit_mae", tmp_path / "run", "--layer-norm-eps", "1e-6") == 0
    assert "layer_norm_eps: 1e-06 as given; model.safetensors says 1e-12" in capsys.readouterr().out
    assert Run(tmp_path / "run").generator().layer_norm_eps == 1e-6


def test_vit_without_a_decoder_is_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = write_transformers(tmp_path / "vit", prefix="")
    assert run_import(tmp_path / "vit", tmp_path / "run") == 0
    ours = Run(tmp_path / "run").generator()
    assert torch.equal(ours.encoder.blocks[1].attn.qkv.weight, theirs.encoder.blocks[1].attn.qkv.weight)
    assert "encoder alone" in capsys.readouterr().out


def test_a_file_in_parts_is_read_from_its_own_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = write_transformers(tmp_path / "vit_mae")
    whole = tmp_path / "vit_mae/model.safetensors"
    named = key_maps.to_transformers(theirs.state_dict())
    names = sorted(named)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: named[name].contiguous() for name in held}, tmp_path / "vit_mae" / part)
    whole.rename(tmp_path / "outside.safetensors")
    index = tmp_path / "vit_mae/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, held in parts.items() for name in held}}))
    assert run_import(tmp_path / "vit_mae", tmp_path / "run") == 0
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../outside.safetensors")}))
    capsys.readouterr()
    assert run_import(tmp_path / "vit_mae", tmp_path / "other") == 2
    assert "'../outside.safetensors' is not a file of this folder" in error_of(capsys)


def write_timm(folder: Path, **changes: Any) -> Any:
    import timm
    from timm.models._hub import save_for_hf

    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0} | changes
    network = timm.create_model("vit_tiny_patch16_224", **options)
    randomise(network)
    save_for_hf(network, folder, model_args=options)
    return network.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"init_values": 0.5}, {"no_embed_class": True}, {"qkv_bias": False}])
def test_a_folder_of_timm_becomes_a_run(changes: dict[str, Any], tmp_path: Path) -> None:
    network = write_timm(tmp_path / "vit", **changes)
    assert run_import(tmp_path / "vit", tmp_path / "run") == 0
    ours, images = Run(tmp_path / "run").generator().double().encoder, images_of(TINY)
    tokens = network.forward_features(ours.normalise(images))
    assert (ours(images) - tokens).abs().max() < 1e-12 * max(1.0, float(tokens.abs().max()))
    assert Run(tmp_path / "run").config.generator.options()["positions"] == "learned"


def test_an_architecture_of_timm_that_would_be_downloaded_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_timm(tmp_path / "vit")
    config = tmp_path / "vit/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architecture": "hf-hub:somebody/something"}))
    assert run_import(tmp_path / "vit", tmp_path / "run") == 2
    assert "timm has no architecture 'hf-hub:somebody/something'" in error_of(capsys)


class Planted:
    """What a pickle of this runs when it is opened without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def write_hostile(path: Path, kind: str, planted: Path) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Planted(planted)}))
    elif kind == "torch pickle":
        torch.save({"model": {"cls_token": torch.zeros(1)}, "args": Planted(planted)}, path)
    elif kind == "header of absurd size":
        path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    elif kind == "tensor beyond its file":
        header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
    elif kind == "zip that escapes":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../planted", "x")
            archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
            archive.writestr("archive/version", "3")
    elif kind == "nan":
        state = generator_like(TINY).state_dict()
        state["encoder.norm.weight"][0] = float("nan")
        save_file(key_maps.to_mae(state), path)


HOSTILE = {
    "pickle": ("x.pth", "tensors and plain values alone are opened (it is no pickle of these)"),
    "torch pickle": ("x.pth", "tensors and plain values alone are opened (it asks for posix.mkdir)"),
    "header of absurd size": ("x.safetensors", "neither a safetensors file nor a state dict"),
    "tensor beyond its file": ("x.safetensors", "neither a safetensors file nor a state dict"),
    "zip that escapes": ("x.pth", "x.pth: "),
    "nan": ("x.safetensors", "the tensor norm.weight has values that are not finite"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("by", ["import", "generator.init_from", "discriminator.init_from"])
def test_a_hostile_file_is_one_line_and_nothing_happens(
    kind: str, by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    monkeypatch.chdir(folder)
    name, printed = HOSTILE[kind]
    write_hostile(folder / name, kind, tmp_path / "planted")
    if by == "import":
        code = run_import(folder / name, tmp_path / "run", "--heads", "2")
    else:
        arguments = [DEBUG, "ls_gan", f"{by}={folder / name}", "--dry-run", "--out", str(tmp_path / "run")]
        code = main(["pretrain", *arguments])
    assert code == 2
    assert printed in error_of(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"inner"}
    assert {path.name for path in folder.iterdir()} == {name}


IN_FOLDERS = {
    "model.safetensors": "header of absurd size",
    "pytorch_model.bin": "torch pickle",
    "diffusion_pytorch_model.safetensors": "tensor beyond its file",
    "diffusion_pytorch_model.bin": "zip that escapes",
}


@pytest.mark.parametrize("name", IN_FOLDERS)
def test_a_hostile_file_in_a_folder_of_a_library_is_one_line_and_nothing_happens(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_hostile(folder / name, IN_FOLDERS[name], tmp_path / "planted")
    assert run_import(folder, tmp_path / "run") == 2
    assert f"{folder / name}: " in error_of(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"inner"}
    assert {path.name for path in folder.iterdir()} == {name, "config.json"}


def write_perceptual_mae(folder: Path) -> None:
    run = folder.parent / "of_ours"
    write_transformers(folder.parent / "hub")
    assert run_import(folder.parent / "hub", run) == 0
    assert main(["export", str(run), "--to", "safetensors", "--with-decoder", "--out", str(folder)]) == 0


WRITERS = {
    "transformers": (write_transformers, "config.json"),
    "its processor": (write_transformers, "preprocessor_config.json"),
    "timm": (write_timm, "config.json"),
    "pmae export": (write_perceptual_mae, "generator.json"),
}
JUNK = {
    "transformers": [
        *({"num_attention_heads": value} for value in ("twelve", None, 0, -1, 3, 2**80, [2])),
        *({"layer_norm_eps": value} for value in (None, float("nan"), -1, "small")),
        *({"image_size": value} for value in ("large", None, 0, -32, 2**40, [32], [32, 32, 32], 40)),
        *({"mask_ratio": value} for value in (7, "most", float("nan"))),
        {"model_type": ["vit"]},
    ],
    "its processor": [
        {"image_mean": "grey"},
        {"image_mean": [0.5]},
        {"image_std": [0, 0, 0]},
        {"image_std": [None] * 3},
    ],
    "timm": [
        *({"architecture": value} for value in (5, None, "resnet18", "vit_nothing")),
        *({"model_args": value} for value in (["depth"], {"depth": "two"}, {"num_heads": 0}, {"img_size": 2**20})),
        *({"pretrained_cfg": value} for value in ("grey", {"mean": "grey"}, {"std": [0, 0, 0]})),
    ],
    "pmae export": [
        *({"options": value} for value in ([], {}, None)),
        *({"image_size": value} for value in (None, "large", [2**40, 2**40])),
        *({"mean": value} for value in (None, "grey", [])),
    ],
}


@pytest.mark.parametrize("form", [form if form == "its processor" else slow(form) for form in JUNK])
def test_junk_in_the_files_beside_the_weights_is_one_line_and_nothing_happens(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, name = WRITERS[form]
    write(tmp_path / "x")  # type: ignore[operator]
    file, out = tmp_path / "x" / name, tmp_path / "run"
    stated = json.loads(file.read_text())
    capsys.readouterr()
    for junk in JUNK[form]:
        file.write_text(json.dumps(stated | junk))
        assert run_import(tmp_path / "x", out) == 2, junk
        assert error_of(capsys).startswith("pmae: "), junk
        assert not list(tmp_path.glob("*run*")), junk
    for text in ("", "{", "[]", "[" * 100_000, "\x00"):
        file.write_text(text)
        assert run_import(tmp_path / "x", out) == 2, text[:9]
        assert f"{file}: is not" in error_of(capsys)


FOREIGN = {
    "a convolutional network": ({"conv1.weight": torch.zeros(8, 3, 3, 3)}, "first keys: conv1.weight"),
    "a discriminator of NVIDIA's": (
        {"b8.fromrgb.weight": torch.zeros(8, 3, 1, 1)},
        "a run's discriminator starts with it by discriminator.init_from",
    ),
    "an autoencoder of diffusers without its folder": (
        {"decoder.trainable_cls_token": torch.zeros(1, 1, 8), "encoder.embeddings.cls_token": torch.zeros(1, 1, 8)},
        "an AutoencoderRAE says in config.json how large its images are",
    ),
}


@pytest.mark.parametrize("network", FOREIGN)
def test_another_architecture_is_named_with_its_first_keys(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, printed = FOREIGN[network]
    save_file(tensors, tmp_path / "x.safetensors")
    assert run_import(tmp_path / "x.safetensors", tmp_path / "run") == 2
    assert printed in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_a_block_with_tensors_of_its_own_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = key_maps.to_mae(key_maps.encoder_of(generator_like(TINY).state_dict()))
    state |= {"blocks.0.attn.q_norm.weight": torch.ones(16), "reg_token": torch.zeros(1, 4, 32)}
    save_file(state, tmp_path / "x.safetensors")
    options = ["--heads", "2", "--layer-norm-eps", "1e-6", *STATISTICS]
    assert run_import(tmp_path / "x.safetensors", tmp_path / "run", *options) == 2
    line = error_of(capsys)
    assert "2 unexpected (first: encoder.blocks.0.attn.q_norm.weight)" in line
    assert "what fits" in line


def test_half_precision_is_widened_without_a_change(tmp_path: Path) -> None:
    state = key_maps.to_mae(generator_like(TINY).state_dict())
    save_file({name: value.bfloat16() for name, value in state.items()}, tmp_path / "x.safetensors")
    tensors = open_pretrained(tmp_path / "x.safetensors").tensors
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["encoder.cls_token"], state["cls_token"].bfloat16().float())


def test_imported_weights_are_no_run_to_resume(tmp_path: Path) -> None:
    write_transformers(tmp_path / "vit_mae")
    assert run_import(tmp_path / "vit_mae", tmp_path / "run") == 0
    with pytest.raises(UserError, match=r"holds imported weights and no training to resume; .*init_from="):
        claim(tmp_path / "run", Run(tmp_path / "run").config)
    assert run_import(tmp_path / "vit_mae", tmp_path / "run") == 2


def test_init_from_takes_the_encoder_or_all_of_a_foreign_file(tmp_path: Path) -> None:
    theirs = write_transformers(tmp_path / "vit_mae")
    encoder = open_start(tmp_path / "vit_mae")
    assert encoder.decoder is None
    whole = open_start(tmp_path / "vit_mae", decoder=True)
    whole.check(generator_like(TINY, norm_pix=True, layer_norm_eps=1e-12))
    assert whole.origin.form == "transformers"
    fresh = MaskedAutoencoder(
        (32, 32), 3, (0.5,) * 3, (0.5,) * 3, norm_pix=True, layer_norm_eps=1e-12,
        **{name: value for name, value in TINY.items() if name != "image_size"},
    )  # fmt: skip
    whole.load(fresh)
    for name, value in theirs.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value) == (name not in key_maps.OF_THE_DATA), name


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({"heads": 4, "layer_norm_eps": 1e-12}, "says heads 2; set generator.heads=2"),
        ({}, "says layer_norm_eps 1e-12; set generator.layer_norm_eps=1e-12"),
        ({"layer_norm_eps": 1e-12}, "says norm_pix True; set generator.norm_pix=true"),
    ],
)
def test_what_shapes_do_not_show_must_be_what_the_file_says(
    options: dict[str, Any], printed: str, tmp_path: Path
) -> None:
    write_transformers(tmp_path / "vit_mae")
    with pytest.raises(UserError, match=rf"generator\.init_from: .*{printed}"):
        open_start(tmp_path / "vit_mae", decoder=True).check(generator_like(TINY | options))  # type: ignore[operator]


def test_a_file_without_a_decoder_has_none_to_take(tmp_path: Path) -> None:
    write_mae(tmp_path / "mae.pth", "pretrain")
    with pytest.raises(UserError, match=r"holds an encoder alone; set generator\.init_parts=encoder"):
        open_start(tmp_path / "mae.pth", decoder=True)


@pytest.mark.parametrize("keys", [["generator.init_parts=generator"], ["generator.init_decoder=true"]])
def test_the_older_name_of_taking_all_still_works(keys: list[str]) -> None:
    assert debug_config("mse", "generator.init_from=x", *keys).generator.starts_decoder
    with pytest.raises(UserError, match="there is no run to take the decoder of"):
        debug_config("mse", *keys)


@pytest.mark.slow
def test_every_command_that_opens_a_run_takes_an_imported_one(tmp_path: Path) -> None:
    write_transformers(tmp_path / "vit_mae", norm_pix_loss=False)
    run = tmp_path / "run"
    assert run_import(tmp_path / "vit_mae", run) == 0
    assert main(["evaluate", str(run), "--metrics", "psnr", "--limit", "8"]) == 0
    assert main(["knn", str(run), "--neighbours", "5"]) == 0
    assert main(["probe", str(run), "--seeds", "0"]) == 0
    assert main(["visualize", str(run), "--out", str(tmp_path / "grid.png")]) == 0
    assert main(["finetune", str(run), "--recipe", "small", "--epochs", "1", "--batch-size", "16"]) == 0
    quick = ["training.epochs=1", "training.epoch_images=8", "training.batch_size=8", "evaluation.limit=8"]
    assert main(["sharpen", str(run), *quick, "--out", str(tmp_path / "sharpened")]) == 0
    sharpened, imported = Run(tmp_path / "sharpened").generator(ema=False), Run(run).generator()
    assert torch.equal(sharpened.encoder.norm.weight, imported.encoder.norm.weight)
    assert not torch.equal(sharpened.decoder.pred.weight, imported.decoder.pred.weight)
    mse = [DEBUG, "mse", *quick, f"generator.init_from={run}", "generator.init_parts=generator"]
    mse += ["generator.layer_norm_eps=1e-12", "generator.decoder_depth=1"]
    mse += ["generator.decoder_width=16", "generator.decoder_heads=4"]
    assert main(["compare", str(run), str(tmp_path / "sharpened"), "--anyway"]) == 0
    assert main(["pretrain", *mse, "--out", str(tmp_path / "continued")]) == 0
