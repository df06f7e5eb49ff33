"""Twenty steps of recorded methods are, number by number, the steps that were recorded (see record_steps.py)."""

import pytest

from record_steps import METHODS, STEPS, Case, cases, find_differences, is_adversarial, load, record, record_by_two

QUICK = {("mse", "lean", 2), ("ls_gan_p", "lean", 1)}
"""Cases without and with a discriminator, and of both accumulations, in seconds."""

Recording = dict[str, dict[str, list[float]]]


BY_TWO = "test_two_processes_take_the_recorded_steps"


def marked(case: Case) -> object:
    """Give a case its tier: CI takes a part of those that are not quick, the rest is for changes of the step."""
    if case.processes == 1 and (case.method, case.order, case.accumulation) in QUICK:
        return pytest.param(case, id=str(case))
    in_turn = bool(METHODS.index(case.method) % 2) and is_adversarial(case.method)
    in_ci = (case.order, case.accumulation) == (("sequential", 2) if in_turn else ("lean", 1))
    in_ci &= in_turn or (case.processes == 1 and METHODS.index(case.method) % 4 == 0)
    return pytest.param(case, id=str(case), marks=[pytest.mark.slow if in_ci else pytest.mark.exhaustive])


@pytest.fixture(scope="module")
def recording() -> Recording:
    return load()


@pytest.fixture(scope="module")
def by_two(request: pytest.FixtureRequest) -> Recording:
    """The selected cases of two gloo processes, in one launch."""
    selected = {item.callspec.params["case"] for item in request.session.items if item.originalname == BY_TWO}
    return record_by_two([str(case) for case in cases(2) if case in selected])


def test_the_recording_holds_every_case_and_no_other(recording: Recording) -> None:
    assert set(recording) == {str(case) for processes in (1, 2) for case in cases(processes)}


@pytest.mark.parametrize("case", [marked(case) for case in cases(1)])
def test_one_process_takes_the_recorded_steps(case: Case, recording: Recording) -> None:
    assert find_differences(record(case), recording[str(case)]) == []


@pytest.mark.parametrize("case", [marked(case) for case in cases(2)])
def test_two_processes_take_the_recorded_steps(case: Case, by_two: Recording, recording: Recording) -> None:
    assert find_differences(by_two[str(case)], recording[str(case)]) == []


def test_the_recorded_steps_meet_every_part_of_the_step_more_than_once(recording: Recording) -> None:
    case = recording[str(Case("stylegan2_ada_p", "lean", 1, 1))]
    counts = {name.removeprefix("scalar/"): numbers[0] for name, numbers in case.items() if name.startswith("scalar/")}
    due = {"total": STEPS, "raw/style": 9, "penalty/r1": 2, "penalty/path_length": 5, "variety": 3}
    due |= {"gradient_ratio/adversarial": 3, "gradient_share/decoder/l1": 3, "augment/r_t": 17}
    assert {name: counts[name] for name in due} == due
    assert case["scalar/augment/p"][1] != case["scalar/augment/p"][2]


def test_a_missing_an_additional_and_a_changed_number_are_reported() -> None:
    recorded = {"scalar/total": [20, 1.0, 0.5, 100.0], "weights/generator": [3.0, 1e-9]}
    assert find_differences(recorded, recorded) == []
    found = {"scalar/total": [20, 1.0, 0.5, 100.0 + 1e-6], "scalar/new": [1, 0.0, 0.0, 0.0]}
    reported = [line.partition(":")[0] for line in find_differences(found, recorded)]
    assert reported == ["scalar/new", "scalar/total", "weights/generator"]
