"""The command line: quick where it can be, exit codes, one line a mistake."""

import io
import json
import re
import subprocess
import sys

import pytest
import typer
import yaml
from rich.console import Console

from perceptual_mae import cli
from perceptual_mae.config.from_signature import first_parameter
from perceptual_mae.errors import UserError

BROKEN = "training: [1\nseed: 2"

WITHOUT_TORCH = """
import sys
from perceptual_mae.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "torchvision", "accelerate", "numpy"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


def run_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)


HELPFUL = ["", "pretrain", "visualize", "evaluate", "curves", "report", "compare", "sweep", "probe", "knn", "finetune"]
HELPFUL += ["configs", "bench", "weights fetch", "embed", "compare-images", "segment"]
ALL_LIGHT = """
import shlex, sys
from perceptual_mae.cli import main
for words in sys.argv[1:]:
    assert main(shlex.split(words)) == 0, words
    heavy = {"torch", "torchvision", "accelerate", "numpy"} & set(sys.modules)
    assert not heavy, (words, heavy)
"""


def test_help_and_lists_come_without_torch():
    words = ["--version", "configs", "weights list", *(f"{command} --help" for command in HELPFUL)]
    result = subprocess.run([sys.executable, "-c", ALL_LIGHT, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage") == len(HELPFUL)


@pytest.mark.parametrize("command", ["pretrain", "configs", "bench"])
def test_unknown_layers_and_broken_files_come_without_torch(command, tmp_path):
    (tmp_path / "broken.yaml").write_text(BROKEN)
    result = run_without_torch(command, "cifar11")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("pmae: unknown layer 'cifar11'")
    assert "did you mean 'cifar10'?" in result.stderr
    result = run_without_torch(command, str(tmp_path / "broken.yaml"))
    assert result.returncode == 2, result.stderr
    assert "broken.yaml: line 2, column 5" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_list_puts_the_papers_rows_with_its_numbers_one_line_a_method(capsys):
    assert cli.main(["configs"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "ls_gan_p LS-GAN-P 0.16 0.53 0.92 16.2 28.2 0.54 113 72.5 84.5 86.5 51.4 45.4 49.2" in lines
    assert "msg_gan MSG-MAE, MSG-GAN - - - - - - - - 84.7 86.5 - - -" in lines
    assert "l1 L1: ours - - - - - - - - - - - - -" in lines
    assert any(line.startswith("quickstart Quick start") for line in lines)
    assert "mse Plain MAE: squared error of the hidden patches." in lines
    assert "dvae_p L1 and the features of DALL-E's encoder (paper eq. 7): no discriminator. weights of dvae" in lines
    assert "PSNR cannot be dB" in lines[-1]


@pytest.mark.parametrize("width", [80, 150])
def test_the_list_fits_a_terminal_and_breaks_neither_numbers_nor_names(width):
    from perceptual_mae.cli.configs import show_all

    page = io.StringIO()
    show_all(Console(file=page, width=width, force_terminal=True, color_system=None, highlight=False))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", page.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    assert "\u2026" not in page.getvalue()
    rows = [" ".join(line.split()) for line in lines if line.startswith("stylegan2_ada_p")]
    assert len(rows) == (3 if width == 80 else 2)  # what it is, then its numbers in as few tables as fit
    assert rows[-1].endswith("53.5 46.1 50.4")
    assert any("Expects two CPU cores" in line for line in lines)


def test_methods_stand_in_the_order_of_the_papers_tables():
    from perceptual_mae.cli.configs import in_the_papers_order
    from perceptual_mae.config.layers import list_methods

    names = [method.name for method in in_the_papers_order(list_methods())]
    assert names[:5] == ["mse", "ms_ssim_l1", "ls_gan_p", "msg_gan_p", "stylegan2_ada_p"]
    assert sorted(names) == [method.name for method in list_methods()]


@pytest.mark.slow
def test_exactly_the_methods_that_do_not_resolve_without_a_file_are_marked_as_needing_weights():
    from perceptual_mae.cli.configs import OF_THE_DISCRIMINATOR, foreign_weights
    from perceptual_mae.config.layers import list_methods
    from perceptual_mae.config.parsing import load_config
    from perceptual_mae.loss_networks import LOSS_NETWORKS

    assert set(OF_THE_DISCRIMINATOR) == {
        name for name, kind in LOSS_NETWORKS.items() if first_parameter(kind) == "discriminator"
    }
    for method in list_methods():
        if foreign_weights(method):
            with pytest.raises(UserError, match="weights"):
                load_config([method.name])
        else:
            load_config([method.name])


def test_layers_resolve_to_yaml(capsys):
    assert cli.main(["configs", "quickstart", "mse", "training.epochs=3"]) == 0
    printed = capsys.readouterr().out
    resolved = yaml.safe_load(printed)
    assert resolved["training"]["epochs"] == 3
    assert resolved["discriminator"] is None
    assert list(resolved["losses"]) == ["mse"]
    (line,) = [line for line in printed.splitlines() if "epochs: 3 " in line]
    assert line.split("  # ")[1].startswith("passes over the training images")


@pytest.mark.parametrize(
    "layers", [["quickstart", "stylegan2_ada_p"], ["stl10", "improved_mae"], ["cifar10", "official_code"]]
)
def test_the_annotated_configuration_is_read_back_and_every_key_of_it_has_a_meaning(layers, tmp_path):
    from perceptual_mae.config.annotated import to_annotated_yaml
    from perceptual_mae.config.layers import read_yaml
    from perceptual_mae.config.parsing import load_config, parse_config

    config = load_config(layers)
    text = to_annotated_yaml(config)
    assert all("  # " in line for line in text.splitlines())
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert parse_config(read_yaml(file)) == config


def test_the_schema_is_json(capsys):
    assert cli.main(["configs", "--schema"]) == 0
    assert "training" in json.loads(capsys.readouterr().out)["properties"]


def test_every_mistake_is_a_line_without_traceback(capsys):
    assert cli.main(["configs", "quickstart", "training.epoch=3", "generator.patch_size=5"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("pmae: ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain"], "Missing argument"),
        (["pretrain", "quickstart", "--dryrun"], "No such option: --dryrun"),
        (["trian"], "No such command 'trian'"),
        (["visualize", "no/such/run"], "no/such/run: does not exist"),
        (["compare", "no/such/run"], "no/such/run: does not exist"),
        (["curves", "no/such/run"], "no/such/run: does not exist"),
        (["visualize", ".", "--count", "none"], "Invalid value for '--count'"),
    ],
)
def test_mistakes_of_usage_are_one_line_and_exit_two(arguments, message, capsys):
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pmae: ")
    assert message in line


@pytest.mark.parametrize(
    ("failure", "code"),
    [(UserError("out: full"), 2), (KeyboardInterrupt(), 130), (RuntimeError("a bug"), 1), (None, 0)],
)
def test_exit_codes(failure, code, monkeypatch, capsys):
    from perceptual_mae.cli import configs

    def check_layers(arguments: list[str]) -> None:
        if failure is not None:
            raise failure

    monkeypatch.setattr(configs, "check_layers", check_layers)
    assert cli.main(["configs"]) == code
    error = capsys.readouterr().err
    assert ("Traceback" in error) == (code == 1)
    assert (error == "pmae: out: full\n") == (code == 2)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, typer.Abort])
def test_an_interruption_is_130_whether_typer_or_we_catch_it(interruption, monkeypatch):
    def app(**_):
        raise interruption

    monkeypatch.setattr(cli, "app", app)
    assert cli.main(["configs"]) == 130


def test_an_exit_asked_for_by_a_command_passes_through(monkeypatch):
    from perceptual_mae.cli import configs

    def check_layers(arguments: list[str]) -> None:
        raise SystemExit(130)

    monkeypatch.setattr(configs, "check_layers", check_layers)
    with pytest.raises(SystemExit) as caught:
        cli.main(["configs"])
    assert caught.value.code == 130


def test_the_module_runs_as_the_script_does():
    result = subprocess.run(
        [sys.executable, "-m", "perceptual_mae.cli", "pretrain", "nothing"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("pmae: unknown layer")


def test_shipped_files_are_found_from_any_folder(tmp_path):
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "configs"], capture_output=True, cwd=tmp_path)
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("words", "is_lost"),
    [("[gloo/transport/tcp/pair.cc:534] Connection closed by peer", True), ("size mismatch", False)],
)
def test_a_lost_process_of_a_command_is_a_line_and_other_errors_are_not_taken_for_it(
    words: str, is_lost: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr("perceptual_mae.cli.evaluate.check_run", broken)
    assert cli.main(["evaluate", "runs/a"]) == 1
    printed = capsys.readouterr().err
    assert (printed == "pmae: another process of the command was lost; give the same command again\n") == is_lost
    assert ("Traceback" in printed) == (not is_lost)
