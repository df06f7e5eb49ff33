"""`pmae export`: what is written is what the run computes, says how to load it, and is whole or not there."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import by_hand, debug_config
from foreign_networks import randomise
from perceptual_mae import Run, UserError
from perceptual_mae.cli import main
from perceptual_mae.config.build import build_evaluation_transform, build_generator
from perceptual_mae.data.decoding import read_image
from perceptual_mae.interop import exporting, graphs, hub_folders, key_maps
from perceptual_mae.interop.exported import Export
from perceptual_mae.interop.model_card import inherits_mae_license
from perceptual_mae.run import checkpoint, folder

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(*overrides: str, started_from: dict[str, Any] | None = None) -> Path:
        config = debug_config("mse", *overrides)
        path = tmp_path / "run"
        path.mkdir()
        folder.describe(path, config, "cpu", "no", started_from)
        generator = build_generator(config.generator, config.data.image, 0)
        randomise(generator)
        metadata = {"step": 4, "images_seen": 32}
        checkpoint.save(path / "checkpoints", 4, {"generator": generator.state_dict()}, metadata)
        return path

    return make


def export(run: Path, form: str, *options: str) -> int:
    return main(["export", str(run), "--to", form, "--out", str(run.parent / "out"), *options])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def code_of_card(folder: Path) -> str:
    _, _, rest = (folder / "README.md").read_text().partition("```python\n")
    return rest.partition("```")[0]


def run_elsewhere(code: str, folder: Path) -> str:
    """Run code in a process that cannot import this package; return what it prints."""
    blocked = "import sys\nsys.modules['perceptual_mae'] = sys.modules['discriminators'] = None\n"
    command = [sys.executable, "-W", "ignore", "-c", blocked + code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "overrides",
    [
        ("generator.layer_scale=0.5", "data.image_size=[16,32]"),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("generator.qkv_bias=false", "generator.positions=learned"), marks=pytest.mark.slow),
    ],
)
def test_timm_opens_an_export_and_computes_the_same(
    overrides: tuple[str, ...], make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(*overrides)
    assert export(run, "timm") == 0
    printed = capsys.readouterr().out
    assert "16 images, float64: greatest difference" in printed
    config = json.loads((run.parent / "out/config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert (config["pretrained_cfg"]["crop_pct"], config["pretrained_cfg"]["interpolation"]) == (1.0, "bicubic")
    with safe_open(run.parent / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # older readers ask for it
    names = load_file(run.parent / "out/model.safetensors").keys()
    assert "mask_token" not in names  # with it timm takes the file for a DINOv2
    assert not {"mean", "std", "entries"} & names
    assert "pos_embed" in names


@pytest.mark.slow
def test_our_own_export_comes_back_bit_for_bit_without_options(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("generator.skips=true", "generator.rgb_heads=true", "generator.encoder_mask_tokens=true")
    assert export(run, "safetensors", "--with-decoder") == 0
    assert main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "back"), "data.root=x"]) == 0
    one, other = Run(run).generator(), Run(tmp_path / "back").generator()
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.slow
def test_torchscript_takes_any_batch(make_run: MakeRun) -> None:
    run = make_run("generator.relative_positions=true")
    assert export(run, "torchscript") == 0
    graph, encoder = torch.jit.load(run.parent / "out/encoder.pt"), Run(run).generator().encoder
    for batch in (1, 3, 8):
        images = torch.rand(batch, 3, 32, 32)
        assert torch.allclose(graph(images), encoder(images), atol=1e-5)


def test_the_hubs_config_says_what_the_run_is(make_run: MakeRun, tmp_path: Path) -> None:
    options = ("generator.qkv_bias=false", "generator.decoder_mlp_ratio=2")
    run = make_run("generator.norm_pix=true", "masking.ratio=0.5", *options)
    opened = Run(run)
    tmp_path.joinpath("folder").mkdir()
    written = Export(opened.generator(), tmp_path / "folder", True, 0.5, opened.config.generator.options())
    hub_folders.write_transformers(written)
    config = json.loads((tmp_path / "folder/config.json").read_text())
    assert config["layer_norm_eps"] == 1e-6
    assert (config["norm_pix_loss"], config["mask_ratio"], config["qkv_bias"]) == (True, 0.5, False)
    assert (config["hidden_size"], config["decoder_num_hidden_layers"], config["intermediate_size"]) == (32, 4, 128)
    assert config["decoder_intermediate_size"] == 64
    processor = json.loads((tmp_path / "folder/preprocessor_config.json").read_text())
    assert (processor["image_processor_type"], processor["resample"]) == ("ViTImageProcessor", 3)
    assert processor["rescale_factor"] == 1 / 255
    assert processor["image_std"] == [0.229, 0.224, 0.225]
    names = load_file(tmp_path / "folder/model.safetensors").keys()
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in names
    assert not [name for name in names if "decoder_encoder" in name or ".layers." in name]


MISFITS = {
    "timm": [
        (["generator.relative_positions=true"], [], "timm cannot hold generator.relative_positions"),
        (["generator.layer_norm_eps=1e-5"], [], "generator.layer_norm_eps 1e-05, timm's is 1e-6"),
        ([], ["--with-decoder"], "timm holds an encoder alone"),
    ],
    "transformers": [
        (["generator.layer_scale=0.1"], [], "transformers cannot hold generator.layer_scale"),
        (["generator.relative_positions=true"], [], "transformers cannot hold generator.relative_positions"),
        (["generator.rgb_heads=true"], ["--with-decoder"], "transformers cannot hold generator.rgb_heads"),
        (["generator.encoder_mask_tokens=true"], ["--with-decoder"], "cannot hold generator.encoder_mask_tokens"),
        (["generator.skips=true"], ["--with-decoder"], "transformers cannot hold generator.skips"),
        (["generator.decoder_attention=cross"], ["--with-decoder"], "generator.decoder_attention: cross"),
        (["generator.decoder_class_token=constant"], ["--with-decoder"], "generator.decoder_class_token: constant"),
        (["data.image_size=[16,32]"], ["--with-decoder"], "images of 16x32 with a decoder"),
    ],
    "onnx": [([], ["--with-decoder"], "onnx holds an encoder alone")],
}


@pytest.mark.parametrize(("form", "case"), [(form, case) for form, cases in MISFITS.items() for case in cases])
def test_what_a_form_cannot_hold_is_refused_in_one_line(
    form: str, case: Any, make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_check_packages", lambda form, needed: None)
    overrides, options, printed = case
    run = make_run(*overrides)
    assert export(run, form, *options) == 2
    assert printed in error_of(capsys)
    assert {path.name for path in run.parent.iterdir()} == {"run"}


def test_a_missing_package_is_named_with_the_extra_that_has_it(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(make_run(), "onnx") == 2
    line = error_of(capsys)
    assert "onnxruntime" in line
    assert "pip install 'perceptual-mae[interop]'" in line


def test_an_export_that_does_not_match_is_not_written(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_others(written: Export) -> None:
        hub_folders.write_timm(written)
        state = load_file(written.folder / "model.safetensors")
        save_file({name: value + 1e-3 for name, value in state.items()}, written.folder / "model.safetensors")

    form = exporting.Form(write_others, hub_folders.prove_timm, hub_folders.misfits_of_timm, 1e-9)
    monkeypatch.setattr(exporting, "FORMS", {"timm": form})
    run = make_run()
    assert export(run, "timm") == 2
    assert "nothing was written" in error_of(capsys)
    assert {path.name for path in run.parent.iterdir()} == {"run"}


def test_a_folder_in_use_is_left_alone(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    (run.parent / "out").mkdir()
    (run.parent / "out/notes.txt").write_text("precious")
    assert export(run, "safetensors") == 2
    assert "is in use" in error_of(capsys)
    assert [path.name for path in (run.parent / "out").iterdir()] == ["notes.txt"]


def test_the_card_says_what_was_trained_and_how_it_scored(make_run: MakeRun) -> None:
    run = make_run()
    (run / "evaluation").mkdir()
    report = {"step": 4, "split": "val", "test_images": 100, "encoder_sha256": "ab" * 32}
    scores = {"encoder": {"mean": {"accuracy": 0.4375, "by_seed": [0.4375]}}}
    (run / "evaluation/probe_cached.json").write_text(json.dumps(report | {"scores": scores}))
    (run / "evaluation/probe.json").write_text(json.dumps(report | {"scores": scores, "step": 3}))
    assert export(run, "safetensors", "--license", "mit", "--dataset", "some/data", "--base-model", "a/b") == 0
    _, header, body = (run.parent / "out/README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["license"] == "mit"
    assert values["pipeline_tag"] == "image-feature-extraction"
    assert values["datasets"] == ["some/data"]
    assert values["base_model"] == "a/b"
    assert values["metrics"] == ["encoder mean accuracy"]
    assert "| encoder mean accuracy | 0.4375 | probe_cached, 100 images of val, weights abababababab |" in body
    assert "32 images in 4 steps" in body
    assert "[0, 1]" in body
    assert "greatest difference 0" in body


@pytest.mark.parametrize(("license_name", "stated"), [([], "cc-by-nc-4.0"), (["--license", "mit"], "mit")])
def test_a_licence_is_inherited_from_the_weights_a_run_started_from(
    license_name: list[str], stated: str, make_run: MakeRun
) -> None:
    origin = {"path": "/somewhere/mae.pth", "form": "facebookresearch/mae", "sha256": "0" * 64, "step": None}
    run = make_run(started_from=origin)
    assert export(run, "safetensors", *license_name) == 0
    card = (run.parent / "out/README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == stated
    assert ("their licence is inherited" in card) == (not license_name)
    assert "Started from mae.pth" in card


def test_every_form_that_an_mae_is_published_in_may_hold_those_weights() -> None:
    forms = ("facebookresearch/mae", "transformers", "diffusers", "timm", "perceptual-mae")
    assert [inherits_mae_license({"form": form}) for form in forms] == [True, True, True, False, False]


def test_a_run_that_started_from_imported_weights_inherits_too(make_run: MakeRun, tmp_path: Path) -> None:
    imported = tmp_path / "imported"
    imported.mkdir()
    (imported / "environment.json").write_text(json.dumps({"started_from": {"form": "facebookresearch/mae"}}))
    file = imported / "checkpoints/step_00000000/generator.safetensors"
    run = make_run(started_from={"path": str(file), "sha256": "0" * 64, "step": 0, "ema": False})
    assert export(run, "safetensors") == 0
    assert "license: cc-by-nc-4.0" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("form", ["timm", *map(by_hand, ["torchscript", "transformers", "safetensors", "onnx"])])
def test_the_lines_of_the_card_run_in_a_process_without_this_package(form: str, make_run: MakeRun) -> None:
    for package in exporting.FORMS[form].needs:
        pytest.importorskip(package)
    run = make_run()
    assert export(run, form) == 0
    check = "" if form == "safetensors" else "assert tuple(tokens.shape) == (2, 17, 32), tokens.shape\n"
    run_elsewhere(code_of_card(run.parent / "out") + check, run.parent / "out")


@pytest.mark.slow
def test_onnxruntime_takes_batches_of_any_size_elsewhere(make_run: MakeRun) -> None:
    for package in exporting.FORMS["onnx"].needs:
        pytest.importorskip(package)
    run = make_run()
    assert export(run, "onnx") == 0
    images = torch.rand(8, 3, 32, 32)
    torch.save(images, run.parent / "images.pt")
    code = """
import onnxruntime, torch
images = torch.load("images.pt").numpy()
session = onnxruntime.InferenceSession("out/encoder.onnx")
assert session.get_inputs()[0].shape[1:] == [3, 32, 32] and isinstance(session.get_inputs()[0].shape[0], str)
torch.save([torch.from_numpy(session.run(None, {"images": images[:n]})[0]) for n in (1, 3, 8)], "tokens.pt")
"""
    run_elsewhere(code, run.parent)
    assert [path.name for path in (run.parent / "out").iterdir() if "data" in path.name] == []  # one file
    encoder = Run(run).generator().encoder
    for tokens in torch.load(run.parent / "tokens.pt"):
        assert torch.allclose(tokens, encoder(images[: len(tokens)]), atol=1e-5)


@pytest.mark.slow
def test_an_onnx_file_is_of_one_size_and_says_so(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in exporting.FORMS["onnx"].needs:
        pytest.importorskip(package)
    import onnxruntime

    run = make_run()
    generator = Run(run).generator().bfloat16()  # such graphs have no kernels on a CPU
    written = Export(generator, run.parent, False, 0.75, {})
    graphs.write_onnx(written)
    session = onnxruntime.InferenceSession(run.parent / graphs.ONNX, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.type, images.shape[1:]) == ("tensor(float)", [3, 32, 32])
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {"images": torch.rand(2, 3, 64, 32).numpy()})
    as_it_is = torch.onnx.export

    def of_any_size(*arguments: Any, dynamic_shapes: Any, **options: Any) -> None:
        sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        as_it_is(*arguments, dynamic_shapes={"images": {0: torch.export.Dim("batch"), **sides}}, **options)

    monkeypatch.setattr(torch.onnx, "export", of_any_size)
    with pytest.raises(UserError, match="the graph says it takes images of any size; export one file for each"):
        graphs.write_onnx(written)


@pytest.mark.slow
def test_the_image_processor_of_transformers_prepares_images_as_ours_do(make_run: MakeRun) -> None:
    transformers = pytest.importorskip("transformers")
    run = make_run("data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.25,0.3]")
    assert export(run, "transformers") == 0
    processor = transformers.ViTImageProcessor.from_pretrained(run.parent / "out")
    pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    Image.fromarray(pixels.numpy()).save(run.parent / "image.png")
    theirs = processor(images=Image.open(run.parent / "image.png"), return_tensors="pt")["pixel_values"]
    opened = Run(run)
    prepared = build_evaluation_transform(opened.config.data)(read_image(run.parent / "image.png")).float() / 255
    ours = opened.generator().encoder.normalise(prepared[None])
    assert (theirs - ours).abs().max() < 3e-7
    oblong = Image.new("RGB", (64, 32))
    assert processor(images=oblong, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)  # squashed
    assert "The image processor squashes images that are not square." in (run.parent / "out/README.md").read_text()


@pytest.mark.slow
@torch.no_grad()
def test_positions_of_other_sizes_are_interpolated_as_transformers_does(make_run: MakeRun) -> None:
    transformers = pytest.importorskip("transformers")
    run = make_run("generator.positions=learned")
    assert export(run, "transformers") == 0
    theirs = transformers.ViTModel.from_pretrained(run.parent / "out", add_pooling_layer=False).eval().double()
    ours = Run(run).generator().encoder.double()
    for size in ((64, 32), (48, 80)):
        images = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        tokens = theirs(ours.normalise(images), interpolate_pos_encoding=True).last_hidden_state
        assert (ours(images) - tokens).abs().max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("norm_pix", ["true", by_hand("false")])
def test_transformers_opens_encoder_and_decoder_elsewhere(norm_pix: str, make_run: MakeRun) -> None:
    pytest.importorskip("transformers")
    run = make_run(f"generator.norm_pix={norm_pix}")
    assert export(run, "transformers", "--with-decoder") == 0
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    ours = Run(run).generator().double()
    torch.save(ours.encoder.normalise(images), run.parent / "inputs.pt")
    code = """
import torch
from transformers import ViTMAEForPreTraining, ViTMAEModel, ViTModel
inputs, patches = torch.load("inputs.pt"), 16
mae, report = ViTMAEForPreTraining.from_pretrained("out", output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
vit = ViTModel.from_pretrained("out", add_pooling_layer=False).double().eval()
whole = ViTMAEModel.from_pretrained("out", mask_ratio=0.0).double().eval()
order = (torch.arange(patches, dtype=torch.float64) / patches).expand(len(inputs), -1)
output = mae.double().eval()(inputs)
torch.save([output.mask, output.logits, vit(inputs).last_hidden_state,
            whole(inputs, noise=order).last_hidden_state, mae.config.norm_pix_loss], "outputs.pt")
"""
    run_elsewhere(code, run.parent)
    mask, logits, tokens, unmasked, has_norm_pix = torch.load(run.parent / "outputs.pt")
    with torch.no_grad():
        prediction = ours(images, mask.bool()).prediction[0]
        assert (ours.encoder(images) - tokens).abs().max() < 1e-12
        assert (ours.encoder(images) - unmasked).abs().max() < 1e-12
    assert (hub_folders.patchify(prediction, 8) - logits).abs().max() < 1e-12
    assert has_norm_pix == (norm_pix == "true")


@pytest.mark.slow
def test_timms_pooled_model_has_no_norm_for_it(make_run: MakeRun) -> None:
    """The card says so: global_pool="avg" wants fc_norm."""
    import timm

    run = make_run()
    assert export(run, "timm") == 0
    assert 'With `global_pool="avg"` timm wants an `fc_norm`' in (run.parent / "out/README.md").read_text()
    with pytest.raises(RuntimeError, match="fc_norm"):
        timm.create_model(f"local-dir:{run.parent / 'out'}", pretrained=True, global_pool="avg")


@pytest.mark.slow
def test_an_export_is_read_back_by_every_importer(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    assert export(run, "timm") == 0
    assert main(["import", str(tmp_path / "out"), "data.root=x", "--out", str(tmp_path / "back")]) == 0
    one, other = (key_maps.encoder_of(Run(each).generator().state_dict()) for each in (run, tmp_path / "back"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
