"""What cells took, carried over to cells that were not run."""

from pathlib import Path
from typing import Any

import pytest

from costs import CPU, extrapolate, measure
from study import Cell


def record(kind: str, images: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "images": images,
        "seconds": seconds,
        "cpu_seconds": seconds / 2,
        "starts": 1,
        "status": "finished",
        "whole": True,
        **more,
    }


def cell(kind: str, images: int, starts: int = 1) -> Cell:
    return Cell(kind, (), Path("x"), kind, images, starts=starts)


RECORDS = [
    record("", 0, 3.0),  # a picture: the shortest
    record("pretrain small", 100, 14.0),  # a line of 4 s and 0.1 s an image
    record("pretrain small", 300, 34.0),
    record("pretrain large", 100, 54.0),  # 50 s for 100
    record("evaluate small", 50, 5.0),  # no second size: 3 s, and 2 s for 50
]


def test_an_image_costs_what_those_of_its_kind_did_without_the_start() -> None:
    costs = measure(RECORDS)
    assert costs is not None
    assert costs.shortest == 3
    assert costs.starts == pytest.approx({"pretrain": 4, "evaluate": 3})
    assert costs.by_kind == pytest.approx({"pretrain small": 0.1, "pretrain large": 0.5, "evaluate small": 0.04})
    assert costs.seconds(cell("pretrain small", 1000)) == pytest.approx(104)
    assert costs.seconds(cell("sweep small", 0, starts=3)) == pytest.approx(9)


def test_cpu_time_is_counted_apart_from_the_clock() -> None:
    costs = measure(RECORDS, CPU)
    assert costs is not None
    assert costs.seconds(cell("pretrain small", 1000)) == pytest.approx(52)


def test_a_line_that_falls_has_no_start() -> None:
    costs = measure([record("probe a", 10, 9.0), record("probe a", 20, 8.0)])
    assert costs is not None
    assert costs.starts == {"probe": 8.0}
    assert costs.by_kind == pytest.approx({"probe a": 1 / 30})


def test_a_kind_that_was_never_run_costs_what_its_command_does_and_an_unknown_command_is_reported() -> None:
    costs = measure(RECORDS)
    assert costs is not None
    assert costs.seconds(cell("pretrain other", 500)) == pytest.approx(4 + 500 * 90 / 500)
    assert costs.seconds(cell("finetune small", 500)) is None
    cells = [cell("pretrain small", 35_960), cell("pretrain other", 0), cell("finetune small", 9)]
    full = extrapolate(cells, costs)
    assert full.hours == pytest.approx((3600 + 4) / 3600)
    assert (full.cells, full.guessed, full.unknown) == (3, [], ["finetune small"])
    assert extrapolate([cell("evaluate other", 1)], costs).guessed == ["evaluate other"]


def test_a_kind_whose_cell_took_no_longer_than_a_start_costs_what_its_command_does() -> None:
    costs = measure([*RECORDS, record("pretrain tiny", 10, 3.0)])
    assert costs is not None
    assert costs.seconds(cell("pretrain tiny", 1_000)) == pytest.approx(4 + 1_000 * (10 + 30 + 50) / 500)
    assert extrapolate([cell("pretrain tiny", 1_000)], costs).guessed == ["pretrain tiny"]


def test_failed_and_resumed_cells_say_nothing() -> None:
    assert measure([record("pretrain a", 9, 1.0, status="failed"), record("pretrain a", 9, 1.0, whole=False)]) is None
