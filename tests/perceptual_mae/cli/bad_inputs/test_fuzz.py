"""Anything that can be typed or written: an answer with exit code 0 or 2 within seconds, never a traceback."""

import io
import os
import resource
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import DEBUG
from perceptual_mae.cli import main
from perceptual_mae.config.parsing import RunConfig, load_config

pytestmark = pytest.mark.slow

SECONDS, GIGABYTES = 20, 2
METHODS = ("mse", "ms_ssim_l1", "ls_gan_p", "msg_gan_p", "stylegan2_ada_p")


def fuzzed(cases: int) -> Any:
    """Settings of so many cases, the same ones each time: a quarter of them, and all by --hypothesis-profile=all."""
    if settings.get_current_profile_name() != "all":
        cases //= 4
    return settings(
        max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def keys_of(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """List the dotted keys of a configuration, sections included."""
    keys = []
    for key, value in tree.items():
        keys += [f"{prefix}{key}", *(keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else [])]
    return keys


CONFIGS: list[RunConfig] = [load_config([DEBUG, method]) for method in METHODS]
KEYS = sorted({key for config in CONFIGS for key in keys_of(config.model_dump(mode="json", by_alias=True))})
SECTIONS = sorted(RunConfig.model_fields)
WORDS = sorted({key.rpartition(".")[2] for key in KEYS})

EXTREMES = ["0", "-0", "-1", "1", "2", "3", "7", "0.5", "0.999999", "1e-9", "1e-320", "1e9", "1e300", "-1e300", "inf",
            "-inf", ".inf", "-.inf", "nan", ".nan", "null", "~", "true", "false", "yes", "[]", "{}", "[1]", "[1, 2]",
            "[0.5, 0.5, 0.5]", "[32, 64]", "''", "' '", "auto", "2147483647", "2147483648", "9223372036854775807",
            "9223372036854775808", "-9223372036854775809", "1" + 30 * "0", "9" * 400, "1_000", "0x10", "1e", "k^-2",
            "{balanced: 0.1}", "{from: 0, to: 1}", "{from: 1, to: 0, over: 0}", "{kind: ada}", "{kind: diffaug}",
            "{kind: vgg16}", "{kind: snapshot}", "{r1: {}}", "{r2: {every: 0}}", "{lecam: {}}", "{path_length: {}}",
            "even_epochs", "{every: 3}", "{from_epoch: 2}", "shapes", "digits", "image_folder", "cifar10", "stl10",
            "block", "grid", "attention", "token", "projected", "msg_gan", "stylegan2", "a:b", "no.such:Thing", ":",
            "!!x y", "*a", "&a", "|", ">", "#", "%", "@", "`", "\x00", "\ud7ff", "\u2028", "é", "🖼"]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(EXTREMES), st.text(max_size=12), st.integers().map(str), st.floats().map(str))


def check(words: list[str]) -> None:
    """Run a command; an unexpected answer fails with the words that made it."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    seconds = time.monotonic() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    assert code in (0, 2), (words, err.getvalue()[-2000:])
    assert "Traceback" not in err.getvalue(), words
    assert all(line.startswith("pmae: ") for line in err.getvalue().splitlines() if code == 2), words
    assert seconds < SECONDS, (words, seconds)
    assert grown < GIGABYTES, (words, grown)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


@fuzzed(800)
@given(
    st.sampled_from(METHODS),
    st.lists(st.tuples(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), TEXTS), min_size=1, max_size=3),
)
def test_overrides(empty: Path, method: str, overrides: list[tuple[str, str]]) -> None:
    words = [f"{key}={text}" for key, text in overrides]
    with chdir(empty):
        check(["pretrain", DEBUG, method, "--dry-run", "--", *words])


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(EXTREMES[:50])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)),
    max_leaves=6,
)
SECTION = st.one_of(VALUES, st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=4))


@fuzzed(600)
@given(st.dictionaries(st.one_of(st.sampled_from(SECTIONS), st.text(max_size=5)), SECTION, max_size=4))
def test_configuration_files(empty: Path, tree: dict[str, Any]) -> None:
    with chdir(empty):
        try:
            Path("mine.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        except UnicodeEncodeError:
            return
        check(["pretrain", DEBUG, "mse", "mine.yaml", "--dry-run"])


@fuzzed(200)
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_files_of_any_bytes(empty: Path, content: bytes) -> None:
    with chdir(empty):
        Path("mine.yaml").write_bytes(content)
        check(["configs", DEBUG, "mse", "mine.yaml"])


NUMBERS = ["--limit", "--test-limit", "--seed", "--seeds", "--ratio", "--epochs", "--batch-size", "--lr",
           "--fraction", "--neighbours", "--temperature", "--count", "--keep", "--rounds", "--warmup", "--threads",
           "--share", "--size", "--layer"]  # fmt: skip
OTHERS = ["--out", "--data", "--split", "--metrics", "--require", "--features", "--mask", "--protocol", "--head",
          "--optimizer", "--recipe", "--set", "--save", "--beside", "--view", "--format", "--bench", "--title",
          "--key", "--grid", "--metric", "--decoder", "--json", "--against", "--from", "--folder", "--layers",
          "--baselines",
          "--ema", "--no-ema", "--attention", "--anyway", "--from-scratch", "--schema", "--help", "--dry-run",
          "--fresh", "--tokens", "--half"]  # fmt: skip
# Each on what is not there, so that nothing is trained, scored or fetched.
COMMANDS = [["evaluate", "."], ["probe", "."], ["knn", "."], ["finetune", "."], ["visualize", "."], ["sharpen", "."],
            ["embed", ".", ".", "--out", "x.npz"], ["compare-images", ".", "."],
            ["curves", "."], ["compare", "."], ["bench", "nowhere.yaml"], ["sweep", DEBUG, "mse", "--dry-run"],
            ["pretrain", DEBUG, "mse", "--dry-run"], ["configs", DEBUG], ["weights", "list"],
            ["weights", "check"], ["weights", "fetch", "nothing"], []]  # fmt: skip


@fuzzed(400)
@given(
    st.sampled_from(COMMANDS),
    st.lists(
        st.one_of(st.tuples(st.sampled_from(NUMBERS + OTHERS), TEXTS), TEXTS.map(lambda text: (text,))), max_size=4
    ),
)
def test_arguments(empty: Path, command: list[str], options: list[tuple[str, ...]]) -> None:
    with chdir(empty):
        for name in os.listdir():
            Path(name).unlink()
        check([*command, *(word for option in options for word in option)])
