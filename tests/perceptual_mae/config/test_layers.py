"""Layers: found, typed, merged, and remembered."""

from pathlib import Path
from typing import Any

import pytest

from conftest import sampled
from perceptual_mae.config import layers
from perceptual_mae.config.layers import BASE, merge_layers
from perceptual_mae.errors import UserError


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def merged(*arguments: str) -> dict[str, Any]:
    return merge_layers(arguments).values


def test_no_layer_is_the_base():
    assert merged() == BASE


def test_a_later_layer_wins_key_by_key(tmp_path):
    first = write(tmp_path, "a.yaml", "training: {epochs: 1, seed: 2}")
    second = write(tmp_path, "b.yml", "training: {epochs: 3}")
    assert merged(first, second)["training"] == {"epochs": 3, "seed": 2}
    assert merged(second, first)["training"] == {"epochs": 1, "seed": 2}


def test_an_override_wins_over_a_layer_that_stands_to_the_right_of_it(tmp_path):
    layer = write(tmp_path, "a.yaml", "training: {epochs: 7, seed: 2}")
    result = merge_layers(["training.epochs=3", layer])
    assert result.values["training"] == {"epochs": 3, "seed": 2}
    assert result.origins["training.epochs"] == "training.epochs=3"


def test_losses_in_a_file_replace_all_losses(tmp_path):
    path = write(tmp_path, "a.yaml", "losses: {mse: 1.0}\npenalties: {r1: {every: 16}}")
    later = write(tmp_path, "b.yaml", "penalties: {path_length: {every: 4}}")
    assert merged(path, later)["losses"] == {"mse": {"weight": 1.0}}
    assert merged(path, later)["penalties"] == {"path_length": {"every": 4}}


def test_overrides_merge_with_losses_and_a_number_is_a_weight():
    losses = merged("losses.style=20", "losses.l1.low_levels=0")["losses"]
    assert losses["style"] == {"weight": 20, "when": "even_epochs"}
    assert losses["l1"] == {"weight": 1.0, "low_levels": 0}
    assert set(losses) == {"l1", "feature_matching", "style", "adversarial"}


def test_a_change_of_kind_replaces_the_section(tmp_path):
    small = write(tmp_path, "a.yaml", "discriminator: {base_channels: 8}")
    same = write(tmp_path, "b.yaml", "discriminator: {kind: ls_gan}")
    other = write(tmp_path, "c.yaml", "discriminator: {kind: msg_gan}")
    assert merged(small, same)["discriminator"] == {"kind": "ls_gan", "base_channels": 8}
    assert merged(small, other)["discriminator"] == {"kind": "msg_gan"}


def test_null_removes(tmp_path):
    path = write(tmp_path, "a.yaml", "discriminator: null")
    assert merged(path)["discriminator"] is None
    assert merged("losses.style=null")["losses"]["style"] is None
    assert merged(path, "discriminator.base_channels=8")["discriminator"] == {"base_channels": 8}


def test_a_weight_of_another_form_replaces_the_weight():
    weight = "losses.adversarial.weight"
    assert merged(f"{weight}={{from: 0, to: 1}}")["losses"]["adversarial"]["weight"] == {"from": 0, "to": 1}
    assert merged(f"{weight}={{balanced: 0.2}}")["losses"]["adversarial"]["weight"] == {"balanced": 0.2, "cap": 1.0}
    assert merged(f"{weight}.cap=0.5")["losses"]["adversarial"]["weight"] == {"balanced": 0.1, "cap": 0.5}
    assert merged("masking.ratio={from: 0.5, to: 0.75}", "masking.ratio=0.5")["masking"]["ratio"] == 0.5


def test_merging_leaves_the_base_alone():
    merged("losses.style=1", "data.root=elsewhere")
    assert BASE["losses"]["style"]["weight"] == 40.0
    assert BASE["data"]["root"] == "data"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("7", 7),
        ("20_000", 20000),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-02", "2024-01-02"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("bf16", "bf16"),
        ("'7'", "7"),
        ("[0.5, 1, a]", [0.5, 1, "a"]),
        ("{every: 4}", {"every": 4}),
        ("a=b", "a=b"),
    ],
)
def test_overrides_are_typed_as_yaml(text, value):
    result = merged(f"some.key={text}")["some"]["key"]
    assert result == value
    assert type(result) is type(value)


def test_every_key_remembers_who_set_it(tmp_path):
    path = write(tmp_path, "a.yaml", "training: {epochs: 1, seed: 2}\nlosses: {l1: 1.0}")
    origins = merge_layers([path, "training.epochs=5", "optimiser.lr=1"]).origins
    assert origins["training.seed"] == path
    assert origins["training.epochs"] == "training.epochs=5"
    assert origins["losses.l1.weight"] == path
    assert origins["optimiser"] == "optimiser.lr=1"
    assert "losses.style.weight" not in origins


def test_a_layer_that_is_replaced_is_forgotten(tmp_path):
    first = write(tmp_path, "a.yaml", "losses: {style: 3.0}")
    second = write(tmp_path, "b.yaml", "losses: {l1: 1.0}")
    assert first not in merge_layers([first, second]).origins.values()


def test_an_unknown_layer_lists_the_known_and_guesses():
    with pytest.raises(UserError, match=r"unknown layer 'cifar_10'.*quickstart.*ls_gan_p.*did you mean 'cifar10'\?"):
        merged("cifar_10")


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(UserError, match=r"quickstart.yaml: does not exist.*did you mean 'quickstart'\?"):
        merged(str(tmp_path / "quickstart.yaml"))
    (tmp_path / "b.yaml").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        merged(str(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "line 2, column 2"),
        ("a:\n\tb: 1", "line 2, column 1"),
        ("a: 1\nb: 2\na: 3", r"line 3, column 1: the key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
        ("- 1\n- 2", "must hold sections"),
        ("just words", "must hold sections"),
        ("1: 2", "a key must be a word"),
        ("a: !!python/object:os.system {}", "line 1"),
        ("a: 1\n---\nb: 2", "line 2"),
    ],
)
def test_a_broken_file_is_one_line_with_its_place(tmp_path, text, message):
    path = write(tmp_path, "broken.yaml", text)
    with pytest.raises(UserError, match=message) as caught:
        merged(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="cannot be read as text"):
        merged(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("override", ["=3", "a..b=3", ".a=3", "a.=3"])
def test_an_override_without_a_key_is_refused(override):
    with pytest.raises(UserError, match="an override is"):
        merged(override)


def test_empty_files_and_byte_order_marks_are_harmless(tmp_path):
    assert merged(write(tmp_path, "a.yaml", "# nothing\n")) == BASE
    (tmp_path / "b.yaml").write_bytes(b"\xef\xbb\xbftraining: {epochs: 2}")
    assert merged(str(tmp_path / "b.yaml"))["training"] == {"epochs": 2}


def test_what_is_written_is_read_back_exactly(tmp_path):
    values = {"a": {"text": ["no", "1e-4", "true", "~", "2024-01-02", "x: y", "7"], "number": [1e-05, 1e22, 0.1, -3]}}
    assert layers.read_yaml(Path(write(tmp_path, "a.yaml", layers.to_yaml(values)))) == values


def test_shipped_layers_have_titles():
    assert layers.list_recipes()[0].name == "quickstart"
    titles = {layer.name: layer.title for layer in layers.list_methods()}
    assert titles["ls_gan_p"] == "LS-GAN-P"
    assert titles["ms_ssim_l1"] == "MS-SSIM + L1"
    assert all(layer.title and layer.expectation for layer in layers.list_recipes() + layers.list_methods())


METHODS = [layer.name for layer in layers.list_methods()]


@pytest.mark.parametrize("last", sampled([(name,) for name in METHODS]))
def test_of_two_methods_the_last_one_wins_whole(last):
    alone = merged(last)
    for first in METHODS:
        both = merged(first, last)
        for section in ("generator", "discriminator", "augment", "losses", "penalties"):
            assert both[section] == alone[section], (first, section)
        if alone["discriminator"] is not None:
            assert both["optimizer"]["discriminator"] == alone["optimizer"]["discriminator"], first
        # The rest is a recipe's: what official_code says of it stays.
        assert first == "official_code" or both.keys() - alone.keys() <= {"optimizer"}, first
