"""`pmae explain`: where a value comes from, whose it is, what the paper has."""

from pathlib import Path

import pytest

from perceptual_mae.cli import main
from perceptual_mae.config.all_keys import models_of_places
from perceptual_mae.config.errors import fields_of
from perceptual_mae.config.explanation import PAPER, explain_layers
from perceptual_mae.config.layers import flatten, list_methods, list_recipes, read_comments, read_yaml
from perceptual_mae.config.parsing import load_config


def test_each_key_in_force_is_explained_once_with_its_value() -> None:
    arguments = ["cifar10", "msg_gan_p", "training.epochs=3"]
    explained = explain_layers(arguments)
    values = load_config(arguments).model_dump(mode="json", by_alias=True)
    leaves = dict(flatten(values))
    assert len({each.key for each in explained}) == len(explained)
    assert {leaf for each in explained for leaf, _ in flatten({each.key: each.value})} == leaves.keys()
    for each in explained:
        for leaf, value in flatten({each.key: each.value}):
            assert leaves[leaf] == value


def test_what_set_a_value_and_whose_it_is_are_told(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("training:\n  batch_size: 24  # my card's memory\n  log_every: 7\n")
    found = {each.key: each for each in explain_layers(["cifar10", "msg_gan_p", str(mine), "optimizer.lr=1e-4"])}
    assert found["generator.skips"].lines()[-1].strip() == "msg_gan_p [paper]"
    assert found["masking.ratio"].lines()[-1].strip() == "cifar10 [MAE]; as in the paper, section 4"
    assert found["data.flip"].lines()[-1].strip() == "default [MAE]"
    assert found["training.batch_size"].lines() == [
        "training.batch_size = 24",
        "    images of one optimiser step, over all processes and micro-batches",
        f"    {mine} [my card's memory]; the paper: 16 (section 4)",
    ]
    assert found["training.log_every"].lines()[-1].strip() == str(mine)
    assert found["optimizer.lr"].lines()[-1].strip() == "optimizer.lr=1e-4 [yours]; the paper: 0.00015 (section 4)"
    weight = found["losses.adversarial.weight"].lines()
    assert weight[0].startswith("losses.adversarial.weight = {balanced: 0.2, at: decoder_input")
    assert weight[-1].endswith("in small runs]; the paper: 1.0 (equation 6)")


def test_every_value_of_the_paper_belongs_to_a_key_that_there_is() -> None:
    keys = {
        f"{place}.{name}"
        for place, kinds in models_of_places().items()
        for kind in kinds.values()
        for name in fields_of(kind)
    }
    assert set(PAPER) <= keys


def test_every_value_of_a_shipped_layer_says_whose_it_is() -> None:
    for layer in [*list_recipes(), *list_methods()]:
        comments = read_comments(layer.path)
        assert [key for key, _ in flatten(read_yaml(layer.path)) if key not in comments] == [], layer.name


def test_a_key_is_explained_with_the_layers_that_set_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "losses.adversarial.weight"]) == 0
    printed = capsys.readouterr().out
    assert "    the paper: 1.0 (equation 6)\n" in printed
    assert "    official_code: 0.7 [paper: its code; the text has 1]\n" in printed
    assert main(["explain", "gamma"]) == 0  # by its last word
    printed = capsys.readouterr().out
    assert "penalties.r1.gamma\n" in printed
    assert "penalties.r2.gamma\n" in printed
    assert "    stylegan2_ada_p: 'auto'" in printed


def test_only_stated_keys_are_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "l1", "training.epochs=30", "schedule.warmup_epochs=0", "--stated"]) == 0
    printed = capsys.readouterr().out
    assert "training.epochs = 30\n" in printed
    assert "    default" not in printed


def test_an_unknown_name_is_answered_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "losses.adversarial.wieght"]) == 2
    mistake = capsys.readouterr().err
    assert mistake.count("\n") == 1
    assert "did you mean 'losses.adversarial.weight'?" in mistake
    assert main(["explain", "cifar01", "mse"]) == 2
    assert "unknown layer 'cifar01'" in capsys.readouterr().err
