"""Two processes train what one process trains."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import halved
from perceptual_mae.schedules import TrainingProgress
from processes import run_two_processes
from two_processes import CASES, train

HERE = Path(__file__).parent


QUICK = [("ls_gan_p", 2)]
"""The case of the default tier."""

SLOW = [("stylegan2_ada_p_lean", 1), ("mse", 2), ("encoder_options", 1), ("msg_gan_p_lean", 2)]

INPUTS = ["pooled_and_discounted", "composite_by_position", "balanced_at_weights", "late"]
INPUTS += ["relativistic", "lecam", "projected", "token", "shared", "cropped", "seldom"]
EXACT = [(method, times) for number, method in enumerate(INPUTS) for times in ((1, 2) if number % 2 else (2, 1))]
"""Ways to the discriminator and back, which agree to the last digits."""

BY_INPUT = "test_two_processes_equal_one_whatever_the_discriminator_is_shown"

REST = [case for case in CASES if case not in QUICK + SLOW + EXACT]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes made of the quick cases, all in one launch."""
    return launch_two(tmp_path_factory.mktemp("two"), QUICK)


@pytest.fixture(scope="module")
def slow_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes made of the slow cases, all in one launch."""
    return launch_two(tmp_path_factory.mktemp("two"), SLOW)


@pytest.fixture(scope="module")
def exact_by_two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes made of the exact cases that are asked for, all in one launch."""
    asked = [item.callspec.params for item in request.session.items if item.originalname == BY_INPUT]
    return launch_two(tmp_path_factory.mktemp("two"), [(each["method"], each["accumulation"]) for each in asked])


@pytest.fixture(scope="module")
def rest_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes made of the other cases, all in one launch."""
    return launch_two(tmp_path_factory.mktemp("two"), REST)


def launch_two(folder: Path, cases: list[tuple[str, int]]) -> Path:
    names = [f"{method}:{number}" for method, number in cases]
    run_two_processes(HERE / "two_processes.py", folder, *names, timeout=480)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("method", "accumulation"), QUICK)
def test_two_processes_equal_one_with_the_same_global_batch(by_two: Path, method: str, accumulation: int) -> None:
    assert_equals_one_process(by_two, method, accumulation, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "accumulation"), SLOW)
def test_two_processes_equal_one_in_more_cases(slow_by_two: Path, method: str, accumulation: int) -> None:
    assert_equals_one_process(slow_by_two, method, accumulation)


@pytest.mark.parametrize(("method", "accumulation"), halved(EXACT))
def test_two_processes_equal_one_whatever_the_discriminator_is_shown(
    exact_by_two: Path, method: str, accumulation: int
) -> None:
    assert_equals_one_process(exact_by_two, method, accumulation, atol=1e-9)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("method", "accumulation"), REST)
def test_two_processes_equal_one_in_every_other_case(rest_by_two: Path, method: str, accumulation: int) -> None:
    assert_equals_one_process(rest_by_two, method, accumulation)


def assert_equals_one_process(by_two: Path, method: str, accumulation: int, atol: float = 1e-5) -> None:
    both, one = load_file(by_two / f"{method}-{accumulation}"), train(method, accumulation)
    assert both.keys() == one.keys()
    for name, value in one.items():
        bound = 1e-5 if name[0].isdigit() else atol  # what a step reports is in float32, weights are in float64
        torch.testing.assert_close(both[name], value, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")


def test_the_cases_cross_an_even_epoch() -> None:
    assert TrainingProgress(1 + 5 // 3, 5, 0.0).epoch == 2
