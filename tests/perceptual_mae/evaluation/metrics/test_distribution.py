"""FID, KID and Inception Score as scores of `pmae evaluate`: what is counted, what is refused, what is reported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from stand_in_inception import CLASSES, DIM, save_stand_in
from torch import Tensor

from conftest import DEBUG
from perceptual_mae.cli import main
from perceptual_mae.evaluation.accumulators import Gather, ReconstructionBatch
from perceptual_mae.evaluation.feature_networks.parsing import open_features
from perceptual_mae.evaluation.metrics.distribution import halves, prepare
from perceptual_mae.evaluation.metrics.frechet import fit_gaussian, frechet_distance
from perceptual_mae.evaluation.metrics.inception_score import inception_score
from perceptual_mae.evaluation.metrics.kernel_distance import kernel_distance
from perceptual_mae.evaluation.metrics.protocol import Setting, UnavailableError
from perceptual_mae.evaluation.metrics.selection import find_weights
from perceptual_mae.pretrained_weights import registry
from processes import run_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights."""
    monkeypatch.setenv("PMAE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A feature network of one's own, `own.pt`: at 32 pixels 12 features and 7 classes, from the stand-in's parts."""
    save_stand_in(str(tmp_path / "own.pt"))
    return f"inception:{tmp_path / 'own.pt'}"


def setting(num_images: int, *features: str) -> Setting:
    return Setting((32, 32), 3, CPU, num_images, find_weights, 8, features=features, trust_code=True)


def random_images(num_images: int, seed: int) -> Tensor:
    coarse = torch.rand(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")


def seen(originals: Tensor, indices: Tensor) -> ReconstructionBatch:
    """Reconstructions that are darker (raw) or half as dark (composite)."""
    blank = torch.zeros(len(originals), 1, dtype=torch.bool)
    raw, composite = originals[indices] * 0.6, originals[indices] * 0.8
    return ReconstructionBatch(
        originals[indices], raw, composite, blank, blank.float(), indices, -torch.ones_like(indices)
    )


@pytest.mark.slow
def test_scores_are_those_of_the_functions_on_the_network_s_features(network: str) -> None:
    originals = random_images(40, seed=0)
    accumulator = prepare(setting(40, network), ["fid", "kid", "is"])
    for part in torch.arange(40).split(16):
        accumulator.update(seen(originals, part))
    found = accumulator.compute(Gather(Accelerator(cpu=True)))
    own = open_features(network, (32, 32), CPU, trust_code=True)
    looked = {name: own.extract(images) for name, images in _subjects(originals).items()}
    reference = looked["originals"].features
    for subject in ("raw", "composite"):
        features, probabilities = looked[subject]
        assert probabilities is not None
        scores = found["scores"][subject]
        expected = frechet_distance(fit_gaussian(features), fit_gaussian(reference))
        assert scores["fid[own.pt]"] == pytest.approx(expected, rel=1e-4)
        assert scores["kid[own.pt]"] == pytest.approx(kernel_distance(features, reference).mean, rel=1e-4)
        assert scores["is[own.pt]"] == pytest.approx(inception_score(probabilities)[0], rel=1e-5)
    first, second = halves(reference, 0)
    ceiling = frechet_distance(fit_gaussian(first), fit_gaussian(second))
    assert found["scores"]["originals"]["fid[own.pt]"] == pytest.approx(ceiling, rel=1e-4)
    assert found["scores"]["raw"]["fid[own.pt]"] > found["scores"]["composite"]["fid[own.pt]"] > 0
    facts = found["feature_networks"]["own.pt"]
    assert (facts["num_images"], facts["dim"], facts["classes"], facts["input"]) == (40, DIM, CLASSES, [299, 299])
    assert facts["sha256"] == registry.sha256_of(Path(network.removeprefix("inception:")))
    assert facts["kid"]["subset_size"] == {"raw": 40, "composite": 40, "originals": 20}
    json.dumps(found, allow_nan=False)


def _subjects(originals: Tensor) -> dict[str, Tensor]:
    return {"originals": originals, "raw": originals * 0.6, "composite": originals * 0.8}


@pytest.mark.slow
def test_an_image_that_is_shown_twice_counts_once_and_the_order_of_batches_does_not_matter(network: str) -> None:
    originals, gather = random_images(40, seed=1), Gather(Accelerator(cpu=True))
    one, other = (prepare(setting(40, network), ["fid", "kid", "is"]) for _ in range(2))
    for part in torch.arange(40).split(8):
        one.update(seen(originals, part))
    for part in torch.cat([torch.arange(40).flip(0), torch.tensor([39, 38])]).split(8):  # padded at the end
        other.update(seen(originals, part))
    first, second = one.compute(gather), other.compute(gather)
    assert second["feature_networks"]["own.pt"]["num_images"] == 40
    for subject, scores in first["scores"].items():
        assert second["scores"][subject] == pytest.approx(scores, rel=1e-5)


def test_halves_are_disjoint_and_equal() -> None:
    first, second = halves(torch.arange(21), seed=3)
    assert len(first) == len(second) == 10
    assert not set(first.tolist()) & set(second.tolist())
    assert halves(torch.arange(21), seed=3)[0].tolist() == first.tolist()


def test_fewer_images_than_features_have_kid_and_a_sentence(network: str) -> None:
    accumulator = prepare(setting(DIM, network), ["fid", "kid", "is"])
    reason = accumulator.unavailable["fid[own.pt]"]
    assert reason.startswith(f"{DIM} images are too few for the covariance of {DIM} features; read kid")
    assert "score 20 or more" in accumulator.unavailable["is[own.pt]"]
    accumulator.update(seen(random_images(DIM, seed=2), torch.arange(DIM)))
    found = accumulator.compute(Gather(Accelerator(cpu=True)))
    assert {*found["scores"]["raw"]} == {"kid[own.pt]"}
    # A half of the originals may be too few where all of them are enough.
    accumulator = prepare(setting(DIM + 2, network), ["fid"])
    accumulator.update(seen(random_images(DIM + 2, seed=2), torch.arange(DIM + 2)))
    found = accumulator.compute(Gather(Accelerator(cpu=True)))
    assert found["scores"]["raw"]["fid[own.pt]"] > 0
    assert found["scores"]["originals"]["fid[own.pt]"] is None


def test_images_that_turn_out_unreadable_may_leave_too_few(network: str) -> None:
    accumulator = prepare(setting(DIM + 1, network), ["fid"])
    assert not accumulator.unavailable
    accumulator.update(seen(random_images(DIM, seed=2), torch.arange(DIM)))
    found = accumulator.compute(Gather(Accelerator(cpu=True)))
    assert "fid[own.pt]" in found["unavailable"]
    assert "scores" not in found


class Overflowing(torch.nn.Module):
    def forward(self, shown: Tensor) -> Tensor:
        means = shown.mean(dim=(2, 3))
        return torch.where(means > 0.1, means / 0, means)


def test_a_network_that_overflows_gives_no_numbers(tmp_path: Path) -> None:
    torch.jit.script(Overflowing()).save(str(tmp_path / "own.ts"))
    accumulator = prepare(setting(40, str(tmp_path / "own.ts")), ["fid", "kid"])
    accumulator.update(seen(random_images(40, seed=0), torch.arange(40)))
    found = accumulator.compute(Gather(Accelerator(cpu=True)))
    assert "scores" not in found
    assert "not finite; check its file" in found["unavailable"]["fid[own.ts]"]


def test_no_image_is_kept(network: str) -> None:
    accumulator = prepare(setting(40, network), ["fid", "is"])
    accumulator.update(seen(random_images(40, seed=0), torch.arange(40)))
    held = [*accumulator._features.values(), *accumulator._probabilities.values()]
    assert {(*part.shape, part.dtype) for parts in held for part in parts} == {
        (40, DIM, torch.float32),
        (40, CLASSES, torch.float32),
    }


def test_without_inception_everything_of_it_is_unavailable_and_the_command_that_brings_it_is_reported(
    weights: Path,
) -> None:
    accumulator = prepare(setting(100), ["fid", "is"])
    assert accumulator.unavailable.keys() == {"fid[inception]", "is[inception]"}
    assert all("pmae weights fetch inception" in reason for reason in accumulator.unavailable.values())
    accumulator.update(seen(random_images(4, seed=0), torch.arange(4)))
    assert not accumulator.compute(Gather(Accelerator(cpu=True)))


def test_images_of_two_channels_have_no_such_scores(network: str) -> None:
    with pytest.raises(UnavailableError, match="1 or 3 channels"):
        prepare(replace(setting(100, network), channels=2), ["fid"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["pretrain", DEBUG, "mse", "training.epochs=1", "evaluation.limit=4", "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.slow
def test_the_command_scores_through_a_network_of_one_s_own_and_through_a_run(
    run: Path, network: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = ["--features", network, "--features", f"run:{run},name=itself"]
    metrics = ["--metrics", "psnr,fid,kid,is", *features, "--trust-code"]
    assert main(["evaluate", str(run), "data.num_images=400", *metrics]) == 0
    report = json.loads(next((run / "evaluation").glob("evaluate*.json")).read_text())
    for subject in ("raw", "composite", "originals"):
        assert {"fid[own.pt]", "kid[own.pt]", "is[own.pt]", "kid[itself]"} <= report["scores"][subject].keys()
    assert report["feature_networks"]["own.pt"]["num_images"] == report["num_images"]
    assert report["feature_networks"]["itself"]["encoder_sha256"]
    assert report["unavailable"]["is[itself]"].startswith("the network returns features and no classes;")
    assert report["versions"]["clean-fid"]
    printed = capsys.readouterr().out
    assert "FID, own.pt" in printed
    digest = report["feature_networks"]["own.pt"]["sha256"]
    assert f"[own.pt]: 40 images, {DIM} features, 299x299 pixels, weights {digest[:12]};" in printed
    assert "evaluate_features_own.pt+itself_metrics_psnr+fid+kid+is.json" in printed
    assert "is[itself] is unavailable: the network returns features and no classes" in printed


def test_a_required_score_that_cannot_be_had_stops_the_command_before_the_pass(
    run: Path, network: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--require", "fid"]) == 2
    assert "pmae weights fetch inception" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--require", "is", "--features", f"run:{run}"]) == 2
    assert "no classes" in capsys.readouterr().err
    assert (
        main(["evaluate", str(run), "--require", "fid", "--features", network, "--trust-code"]) == 2
    )  # it has 9 test images
    assert "too few for the covariance" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--features", "incepton"]) == 2
    assert "did you mean 'inception'" in capsys.readouterr().err
    assert not (run / "evaluation").exists()


def test_without_any_weights_the_other_scores_are_there(run: Path, weights: Path) -> None:
    assert main(["evaluate", str(run)]) == 0
    report = json.loads((run / "evaluation" / "evaluate.json").read_text())
    assert report["scores"]["raw"]["psnr"]
    assert {"fid[inception]", "kid[inception]", "is[inception]"} <= report["unavailable"].keys()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(run: Path, network: str, weights: Path, tmp_path: Path) -> None:
    arguments = [
        "evaluate",
        str(run),
        "data.num_images=420",
        "--metrics",
        "fid,kid,is",
        "--features",
        network,
        "--trust-code",
    ]
    assert main([*arguments, "--batch-size", "5", "--out", str(tmp_path / "one.json")]) == 0
    both = [*arguments, "--batch-size", "5", "--out", str(tmp_path / "both.json")]
    run_two_processes("-m", "perceptual_mae.cli", *both)
    one, both = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "both"))
    assert both["num_images"] == one["num_images"]
    assert both["num_images"] % 10  # a last batch that is not full, and not one for each process
    assert both["feature_networks"] == one["feature_networks"]
    assert both["scores"] == one["scores"]
    assert both["scores"]["raw"]["fid[own.pt]"] > 0
