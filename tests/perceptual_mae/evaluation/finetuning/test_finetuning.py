"""Fine-tuning from end to end, on digits at debug size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from conftest import debug_config, slow
from perceptual_mae import Run, UserError, pretrain
from perceptual_mae.cli.representation_tables import finetune_table
from perceptual_mae.evaluation.finetuning.classifier import Classifier, fresh_encoder, open_classifier
from perceptual_mae.evaluation.finetuning.evaluate import finetune_run
from perceptual_mae.evaluation.finetuning.recipes import FinetuneRecipe, read_recipe
from perceptual_mae.evaluation.finetuning.training import check_batch, count_right, score_classifier, train_classifier
from perceptual_mae.evaluation.labelled_data import LabelledData, open_labelled
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.evaluation.representation.features import fingerprint
from processes import run_two_processes

DIGITS = ["mse", "data={kind: digits, image_size: 32}", "data.num_images=null"]
QUICK = ["epochs=2", "batch_size=30"]
EVERYTHING = [*QUICK, "lr=1e-2", "drop_path=0.3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "digits"
    torch.set_num_threads(1)
    pretrain(debug_config(*DIGITS, "training.epoch_images=160"), path, quiet=True)
    return Run(path)


@pytest.fixture(scope="module")
def data(run: Run) -> LabelledData:
    return open_labelled(run.config, limit=150, test_limit=59)


def finetune(run: Run, data: LabelledData, *settings: str, **options: Any) -> dict[str, Any]:
    name = "mae" if "drop_path=0.3" in settings else "small"
    return finetune_run(run, data, make_accelerator(run.config), read_recipe(name, 2, settings), **options)


def train(classifier: Classifier, data: LabelledData, recipe: FinetuneRecipe, seed: int = 0) -> list[dict[str, float]]:
    return train_classifier(classifier, data, recipe, Accelerator(cpu=True), seed=seed)


@pytest.fixture(scope="module")
def report(run: Run, data: LabelledData) -> dict[str, Any]:
    return finetune(run, data, *EVERYTHING, seeds=(0, 1))


@pytest.mark.parametrize("pool", ["mean", slow("class_token")])
def test_everything_learns_and_sees_every_patch(pool: str, run: Run, data: LabelledData) -> None:
    classifier = Classifier(run.generator().encoder, 10, pool=pool)  # type: ignore[arg-type]
    before = {name: parameter.detach().clone() for name, parameter in classifier.named_parameters()}
    shapes = set[torch.Size]()
    classifier.encoder.blocks[0].register_forward_hook(lambda module, inputs, output: shapes.add(inputs[0].shape[1:]))
    train(classifier, data, read_recipe("mae", 2, EVERYTHING))
    still = [name for name, parameter in classifier.named_parameters() if torch.equal(before[name], parameter)]
    assert not still
    assert shapes == {(1 + 16, 32)}  # the class token and every patch


@pytest.mark.slow
def test_digits_are_learnt() -> None:
    config = debug_config(*DIGITS)
    data = open_labelled(config, limit=600, test_limit=200)
    classifier = Classifier(fresh_encoder(config, 0), 10)
    curve = train(classifier, data, read_recipe("small", 2, ["epochs=9", "batch_size=30", "lr=4e-3", "flip=0"]))
    assert curve[-1]["train_loss"] < 0.7 * curve[0]["train_loss"]
    assert score_classifier(classifier, data, Accelerator(cpu=True))["top1"] > 0.5  # a tenth is chance


@pytest.mark.slow
def test_paths_are_open_when_scored(data: LabelledData) -> None:
    classifier = Classifier(fresh_encoder(debug_config(*DIGITS), 0), 10)
    accelerator, seen = Accelerator(cpu=True), list[object]()
    classifier.encoder.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs)))
    train(classifier, data, read_recipe("small", 2, [*QUICK, "drop_path=0.9"]))
    assert set(seen) == {2}  # tokens and paths
    seen.clear()
    assert score_classifier(classifier, data, accelerator) == score_classifier(classifier, data, accelerator)
    assert set(seen) == {1}
    assert not classifier.training


@pytest.mark.slow
def test_a_seed_repeats_and_another_differs(run: Run, data: LabelledData, report: dict[str, Any]) -> None:
    again = finetune(run, data, *EVERYTHING, seeds=(1, 0))
    assert again["curves"] == report["curves"]
    assert again["scores"]["top1"]["by_seed"] == report["scores"]["top1"]["by_seed"][::-1]
    assert report["curves"]["0"] != report["curves"]["1"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [EVERYTHING, QUICK])
def test_how_a_batch_is_accumulated_changes_nothing(settings: list[str], run: Run, data: LabelledData) -> None:
    settings = [*settings, "batch_size=32"]
    whole, parts = (finetune(run, data, *settings, f"accumulation={parts}") for parts in (1, 4))
    for one, other in zip(whole["curves"]["0"], parts["curves"]["0"], strict=True):
        assert other == pytest.approx(one, abs=2e-4)


def test_rates_warm_up_and_fall_to_the_floor(run: Run, data: LabelledData) -> None:
    settings = ["epochs=4", "batch_size=30", "warmup_epochs=1", "lr=1e-3", "min_lr=1e-5"]
    rates = [point["lr"] for point in finetune(run, data, *settings)["curves"]["0"]]
    # 5 steps an epoch; the last step of each: 4/5 of the warm-up, then a cosine over 15 steps, at 4, 9 and 14
    assert rates == pytest.approx([8e-4, 8.361e-4, 3.520e-4, 2.082e-5], rel=1e-3)


@pytest.mark.slow
def test_from_scratch_starts_elsewhere_and_is_said(run: Run, data: LabelledData, report: dict[str, Any]) -> None:
    scratch = finetune(run, data, *EVERYTHING, from_scratch=True, seeds=(3,))
    assert scratch["encoder_sha256"] == fingerprint(fresh_encoder(run.config, 3))
    assert report["encoder_sha256"] == fingerprint(run.generator().encoder) != scratch["encoder_sha256"]
    assert (scratch["from_scratch"], scratch["encoder_tensors"]) == (True, {"loaded": 0, "missing": 0})
    assert (report["from_scratch"], report["encoder_tensors"]["missing"]) == (False, 0)
    same_draws = finetune(run, data, *EVERYTHING, seeds=(3,))
    assert same_draws["curves"]["3"] != scratch["curves"]["3"]


def test_a_report_says_what_it_stands_on(report: dict[str, Any]) -> None:
    assert report["kind"] == "finetune"
    assert (report["train_images"], report["test_images"], report["classes"]) == (150, 59, 10)
    assert (report["recipe"]["rand_augment"], report["recipe"]["peak_lr"]) == ("rand-m9-mstd0.5-inc1", 1e-2)
    assert [len(curve) for curve in report["curves"].values()] == [2, 2]
    for found in report["scores"].values():
        assert found["accuracy"] == pytest.approx(sum(found["by_seed"]) / 2, abs=1e-5)
    assert all(first <= five for first, five in zip(*(s["by_seed"] for s in report["scores"].values()), strict=True))
    json.dumps(report)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in finetune_table(report).splitlines()]
    assert table[0] == ["after 2 epochs", "top-1, %", "top-5, %", "train loss"]
    assert [row[0] for row in table[2:]] == ["seed 0", "seed 1", "mean"]


@pytest.mark.slow
def test_a_fraction_is_the_same_images_for_every_run_of_a_seed(run: Run) -> None:
    whole = open_labelled(run.config, test_limit=20)
    settings = ["epochs=1", "batch_size=8"]
    trained = [finetune(run, whole, *settings, fraction=0.01, seeds=(0,), from_scratch=fresh) for fresh in (0, 1)]
    assert [report["train_images"] for report in trained] == [10, 10]  # of 1,258 of ten classes
    assert trained[0]["fraction"] == 0.01
    with pytest.raises(UserError, match="10 training images do not fill one batch of 16"):
        finetune(run, whole, "epochs=1", "batch_size=16", fraction=0.01)


@pytest.mark.slow
def test_what_is_saved_scores_as_it_did(run: Run, data: LabelledData, tmp_path: Path) -> None:
    report = finetune(run, data, *QUICK, seeds=(0, 1), save=tmp_path / "kept")
    accelerator = Accelerator(cpu=True)
    for seed, accuracy in zip((0, 1), report["scores"]["top1"]["by_seed"], strict=True):
        opened = open_classifier(tmp_path / "kept" / f"seed_{seed}")
        assert score_classifier(opened, data, accelerator)["top1"] == accuracy
        assert opened.classes == data.train.classes
    finetune(run, data, *QUICK, save=tmp_path / "one")
    assert open_classifier(tmp_path / "one").pool == "mean"


def test_a_loss_that_is_not_finite_is_reported(run: Run, data: LabelledData) -> None:
    with pytest.raises(UserError, match="not finite in epoch 1; lower the rate"):
        finetune(run, data, *QUICK, "lr=1e30", "warmup_epochs=0")


def test_right_answers_are_counted_by_hand() -> None:
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]])
    assert count_right(logits, torch.tensor([0, 6, 0])).tolist() == [2, 2, 3]
    assert count_right(logits, torch.tensor([4, 2, 1])).tolist() == [0, 2, 3]
    assert count_right(logits[:, :3], torch.tensor([0, 2, 1])).tolist() == [2, 3, 3]


def test_batches_that_cannot_be_shared_are_refused() -> None:
    plain, mixed = read_recipe("small", 2, ["batch_size=12"]), read_recipe("mae", 2, ["batch_size=12"])
    check_batch(plain, 12, 4)
    check_batch(mixed, 12, 2)
    with pytest.raises(UserError, match="do not fill one batch of 12; lower it with --batch-size"):
        check_batch(plain, 11, 1)
    with pytest.raises(UserError, match=r"12 does not fall into 4 process\(es\) x 1 micro-batch\(es\) of pairs"):
        check_batch(mixed, 12, 4)
    with pytest.raises(UserError, match="12 does not fall into 8"):
        check_batch(plain, 12, 8)


BY_TWO = """
import json
import sys

import torch

from perceptual_mae.evaluation.finetuning.evaluate import finetune_run
from perceptual_mae.evaluation.finetuning.recipes import read_recipe
from perceptual_mae.evaluation.open_run import open_run

opened = open_run(sys.argv[1], limit=150, test_limit=59)
assert opened.accelerator.num_processes == 2
recipe = read_recipe("mae", 2, sys.argv[3:])
report = finetune_run(opened.run, opened.data, opened.accelerator, recipe, seeds=(0, 1))
if opened.is_main_process:
    json.dump(report, open(sys.argv[2], "w"))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains(run: Run, data: LabelledData, tmp_path: Path) -> None:
    (tmp_path / "by_two.py").write_text(BY_TWO)
    settings = [*EVERYTHING, "batch_size=32", "accumulation=2"]
    run_two_processes(tmp_path / "by_two.py", run.path, tmp_path / "found.json", *settings)
    both, one = json.loads((tmp_path / "found.json").read_text()), finetune(run, data, *settings, seeds=(0, 1))
    assert (both["processes"], both["test_images"]) == (2, 59)
    for seed in ("0", "1"):
        for of_two, of_one in zip(both["curves"][seed], one["curves"][seed], strict=True):
            assert of_two == pytest.approx(of_one, abs=2e-4)
    assert both["scores"]["top1"]["by_seed"] == pytest.approx(one["scores"]["top1"]["by_seed"], abs=0.035)  # 2 of 59
