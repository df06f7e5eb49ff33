"""Unknown keys are answered from the cached table of keys as the full validation answers them, and without PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perceptual_mae.config import known_keys
from perceptual_mae.config.all_keys import key_table
from perceptual_mae.config.layers import merge_layers
from perceptual_mae.config.mistake import line_of
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError

WITHOUT_TORCH = """
import sys
from perceptual_mae.cli import main
code = main(sys.argv[1:])
assert not {"torch", "torchvision", "accelerate", "numpy"} & set(sys.modules)
sys.exit(code)
"""


def early_lines(*arguments: str) -> list[str]:
    merged, table = merge_layers(arguments), key_table()
    values = {key: value for key, value in merged.values.items() if value is not None}
    mistakes = known_keys.unknown_keys(values, table)
    return [line_of(mistake, merged.origins, "configuration", table.elsewhere) for mistake in mistakes]


def full_lines(*arguments: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(arguments)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ("cifar10", "trainnig.epochs=3"),
        ("cifar10", "optimizer.lrr=1"),
        ("cifar10", "optimizer.discriminator.beta=1"),
        ("cifar10", "data.rot=x", "masking.rato=0.5", "training.epoch=1", "tracker=1"),
        ("cifar10", "generator.deptth=3", "generator.epochs=3"),
        ("cifar10", "discriminator.norms=group", "discriminator.kind=ls_gan"),
        ("cifar10", "stylegan2_ada_p", "augment.tarjet=0.5", "penalties.r1.gama=1", "penalties.r3=1"),
        ("cifar10", "ls_gan_p", "losses.l2=1", "losses.l1.regin=all", "losses.style.cap=0.5"),
        ("cifar10", "ls_gan_p", "losses.l1.network=vgg16", "losses.style.network.wight=x"),
        ("cifar10", "masking.kind=block", "masking.hide=1"),
        ("cifar10", "ls_gan_p", "discriminator={kind: projected, network: {kind: vgg16, weights: random, wight: 1}}"),
        ("cifar10", "kindd=1", "penalties.r1x=null"),
    ],
)
def test_the_lines_are_those_of_the_full_validation(arguments: tuple[str, ...]) -> None:
    lines = early_lines(*arguments)
    assert lines
    assert lines == full_lines(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("cifar10", "ls_gan_p"),
        ("cifar10", "stylegan2_ada_p", "training.epochs=many", "augment=null"),
        ("cifar10", "data.anything=null", "losses.l2=null", "anything=null"),  # null removes
        ("cifar10", "masking.kind=my.module:Masks", "masking.anything=1"),  # its keys are its own
        ("cifar10", "losses.mine={kind: my.module:term, anything: 1}"),
        ("cifar10", "masking.kind=rnadom", "masking.anything=1"),
        ("cifar10", "masking.kind=[1]", "losses=3", "training=[]"),
        ("cifar10", "losses.l1.weight={balancd: 1}", "losses.l1.when={evry: 3}"),  # a value, not a place
    ],
)
def test_nothing_is_said_where_keys_are_known_or_it_is_not_certain(arguments: tuple[str, ...]) -> None:
    assert early_lines(*arguments) == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "perceptual-mae" / "keys.json"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, env=dict(os.environ)
    )


@pytest.mark.parametrize("command", ["pretrain", "configs", "bench", "sweep"])
def test_a_misspelt_key_is_answered_without_torch_once_the_table_is_in_the_cache(command: str, cache: Path) -> None:
    known_keys.store(key_table)
    options = ["--seeds", "0", "--out", "x"] if command == "sweep" else []
    result = run(command, "cifar10", "trainnig.epochs=3", *options)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("pmae: trainnig.epochs=3: trainnig: unknown key; allowed: data, ")
    assert result.stderr.endswith("(did you mean 'training'?)\n")
    assert len(result.stderr.splitlines()) == 1


def test_a_table_of_other_sources_does_not_count_and_is_written_anew(cache: Path) -> None:
    known_keys.store(key_table)
    tree = json.loads(cache.read_text())
    cache.write_text(json.dumps(tree | {"fingerprint": "0"}))
    assert known_keys._stored() is None
    known_keys.store(key_table)
    assert json.loads(cache.read_text()) == tree


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": null}', "null"])
def test_a_damaged_table_is_none(content: str, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert known_keys._stored() is None


def test_a_cache_that_cannot_be_written_is_left_alone(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    known_keys.store(key_table)
    assert cache.parent.is_file()


def test_a_table_is_read_back_as_it_was_made(cache: Path) -> None:
    known_keys.store(key_table)
    assert known_keys._stored() == key_table()


def test_changed_sources_change_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "discriminators"
    package.mkdir()
    source = package / "__init__.py"
    prints = []
    monkeypatch.setattr(known_keys, "_package_folders", lambda: [package])
    for text in ("", "x = 1", "x = 12"):
        source.write_text(text)
        prints.append(known_keys._fingerprint())
    assert len(set(prints)) == 3
