"""The representation's scores while a run trains: of the right images and weights, and without a trace in the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import debug_config, generator_of, write_black_stl10
from perceptual_mae import Run, pretrain
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.subsets import limited
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.evaluation.representation.features import encoder_features, extract_features
from perceptual_mae.evaluation.representation.knn import knn_accuracies
from perceptual_mae.evaluation.representation.linear_probe import linear_probe
from perceptual_mae.evaluation.representation.online import PENALTY, OnlineData, open_online, score_online
from perceptual_mae.evaluation.representation.spectrum import alpha_req, rankme
from perceptual_mae.training.messages import headline

DIGITS = ["mse", "data={kind: digits, image_size: 32}", "data.num_images=null", "training.ema_kimg=0.05"]


def online_of(config: RunConfig) -> OnlineData:
    return open_online(config, config.data.build("train"), open_held_out(config, limit=config.evaluation.limit))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "digits"
    torch.set_num_threads(1)
    pretrain(debug_config(*DIGITS, "evaluation.probe_images=60", "evaluation.limit=40"), path, quiet=True)
    return Run(path)


@pytest.mark.slow
def test_scores_are_those_of_the_averaged_encoder_on_whole_held_out_images(run: Run) -> None:
    config, accelerator = run.config, make_accelerator(run.config)
    held_out, data = open_held_out(config, limit=40), online_of(config)
    encoder = run.generator(ema=True).requires_grad_(False).encoder
    train, test = (
        extract_features(encoder_features(encoder), images, held_out.transform, accelerator)
        for images in (limited(config.data.build("train"), 60), data.held_out)
    )
    assert len(train.labels) == 60
    assert test.labels.tolist() == [held_out.dataset[index][1] for index in held_out.indices]
    sets = (train.named["mean"], train.labels, test.named["mean"], test.labels)
    expected = {
        "rankme": rankme(test.named["mean"]),
        "alpha_req": alpha_req(test.named["mean"]),
        "probe": linear_probe(*sets, num_classes=10, candidates=(PENALTY,)).accuracy,
        "knn": knn_accuracies(*sets, neighbours=(20,))[20],
    }
    summary = run.summary()
    assert summary is not None
    assert summary["representation"] == pytest.approx(expected, abs=1e-4)
    assert summary["representation"]["probe"] > 0.2  # a tenth is chance


def test_every_evaluation_of_a_run_has_them_and_says_so(run: Run) -> None:
    scored = [record["evaluation"]["representation"] for record in run.metrics() if "evaluation" in record]
    assert len(scored) == 2
    assert scored[0] != scored[1]
    assert all(list(scores) == ["rankme", "alpha_req", "probe", "knn"] for scores in scored)
    written = (run.path / "log.txt").read_text()
    said = f"RankMe {scored[0]['rankme']:.1f}, probe {100 * scored[0]['probe']:.1f} %, 20-NN"
    assert f"dB, SSIM {run.metrics()[2]['evaluation']['ssim']:.3f}, {said}" in written
    assert f"features of whole images: RankMe {scored[1]['rankme']:.1f}, probe" in written


def everything(path: Path) -> dict[str, torch.Tensor]:
    files = sorted(Run(path).checkpoint.glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mse", pytest.param("ls_gan_p", marks=pytest.mark.slow)])
def test_a_run_with_a_probe_has_the_very_weights_of_one_without(method: str, tmp_path: Path) -> None:
    with_state = []
    for name, options in (("with", ["evaluation.probe_images=40"]), ("without", ["evaluation.every=0"])):
        torch.manual_seed(0)
        pretrain(debug_config(method, "generator.drop_path=0.2", *options), tmp_path / name, quiet=True)
        with_state.append(torch.random.get_rng_state())
    probed, plain = everything(tmp_path / "with"), everything(tmp_path / "without")
    assert probed.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in probed.items())
    assert torch.equal(*with_state)


def test_scoring_draws_nothing_from_the_global_stream_and_leaves_modes_and_gradients_alone() -> None:
    config = debug_config(*DIGITS, "evaluation.probe_images=30", "evaluation.limit=20")
    encoder = debug_encoder(config).train()
    state = torch.random.get_rng_state()
    scores = score_online(mean_of(encoder), online_of(config), make_accelerator(config), batch_size=16)
    assert scores.keys() == {"rankme", "alpha_req", "probe", "knn"}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())


def debug_encoder(config: RunConfig) -> torch.nn.Module:
    return generator_of(config).encoder


def mean_of(encoder: Any) -> Any:
    return lambda images: {"mean": encoder(images)[:, 1:].mean(1)}


@pytest.mark.parametrize(
    "options", [["evaluation.probe_images=0"], ["evaluation.probe_images=19"], ["data.num_images=15"]]
)
def test_without_a_probe_the_spectrum_stays(options: list[str]) -> None:
    config = debug_config("mse", "evaluation.probe_images=50", *options)
    data = online_of(config)
    assert data.train is None
    scores = score_online(mean_of(debug_encoder(config)), data, make_accelerator(config), batch_size=4)
    assert scores.keys() == {"rankme", "alpha_req"}


def test_images_without_labels_have_a_spectrum_alone(tmp_path: Path) -> None:
    for number in range(40):
        Image.effect_noise((32, 32), number + 20.0).convert("RGB").save(tmp_path / f"{number}.png")
    data = f"data={{kind: image_folder, root: {tmp_path}, holdout: 0.2, image_size: 32}}"
    config = debug_config("mse", data, "data.size=null", "data.num_images=null", "evaluation.probe_images=30")
    scores = score_online(mean_of(debug_encoder(config)), online_of(config), make_accelerator(config), batch_size=4)
    assert scores.keys() == {"rankme", "alpha_req"}
    assert scores["rankme"] is not None


def test_a_run_on_unlabelled_images_is_probed_on_the_labelled_part_where_that_is_there(tmp_path: Path) -> None:
    write_black_stl10(tmp_path, unlabeled=12, train=30, test=10)
    stl10 = f"data={{kind: stl10, root: {tmp_path}, image_size: 32}}"
    config = debug_config("mse", stl10, "data.num_images=null", "data.size=null", "evaluation.probe_images=25")
    train = online_of(config).train
    assert train is not None
    assert (len(train), len(train.classes)) == (25, 10)
    (tmp_path / "stl10_binary" / "train_y.bin").unlink()
    assert online_of(config).train is None


def test_one_held_out_image_has_no_spectrum_and_no_words() -> None:
    config = debug_config("mse", "evaluation.limit=1")
    scores = score_online(mean_of(debug_encoder(config)), online_of(config), make_accelerator(config), batch_size=4)
    assert scores == {"rankme": None, "alpha_req": None}
    assert headline({"psnr": 20.0, "representation": scores}) == "held-out PSNR 20.00 dB"
