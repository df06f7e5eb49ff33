"""What a report reads of metrics.jsonl and log.txt."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from perceptual_mae.errors import UserError
from perceptual_mae.report.page import metrics_log
from perceptual_mae.report.page.metrics_log import read_alarms, read_log, read_logs, thin


def write(path: Path, *records: object, tail: str = "") -> Path:
    path.mkdir(exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records) + tail)
    return path


def test_numbers_stand_at_the_images_seen_by_their_dotted_keys(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        {"epoch": 1, "step": 5, "images_seen": 40, "raw": {"l1": 0.5, "style": 2}, "active": ["l1", "style"]},
        {"epoch": 1, "step": 10, "images_seen": 80, "raw": {"l1": 0.25}, "active": ["l1"]},
        {"epoch": 1, "step": 10, "evaluation": {"psnr": 12.5, "by": {"probe": None}}},
    )
    log = read_log(run, batch_size=8)
    columns = {key: (seen.tolist(), values.tolist()) for key, (seen, values) in log.columns.items()}
    assert columns == {
        "raw.l1": ([40, 80], [0.5, 0.25]),
        "raw.style": ([40], [2]),
        "evaluation.psnr": ([80], [12.5]),
    }
    assert log.epochs == {1: 80}


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_a_log_is_the_same_however_many_lines_are_read_at_once(tmp_path: Path, at_once: int) -> None:
    records = [
        {"epoch": 1, "step": step, "raw": {"l1": step / 7} | ({"r1": step} if step % 3 else {})} for step in range(9)
    ]
    with mock.patch.object(metrics_log, "LINES_AT_ONCE", at_once):
        columns = read_log(write(tmp_path, *records), batch_size=1).columns
    assert columns["raw.l1"][1].tolist() == [step / 7 for step in range(9)]
    assert columns["raw.r1"][0].tolist() == [1, 2, 4, 5, 7, 8]


def in_layouts(count: int, seed: int) -> list[dict[str, Any]]:
    """Records of three layouts with numbers of all forms, and names with numbers in them."""
    draws = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        values = (draws.normal(size=6) * 10.0 ** draws.integers(-12, 12, size=6)).tolist()
        record: dict[str, Any] = {
            "epoch": 1 + step // 7,
            "step": step,
            "raw": dict(zip(("l1", "e-3x"), values[:2], strict=True)),
        }
        record["levels"] = {"32": {"l1": values[2]}, "16": {"l1": values[3], "r1-e+2": step}}
        record |= {"evaluation": {"psnr": values[4], "none": None}} if step % 5 == 0 else {}
        records.append(record | {"active": ["l1", "l2"][: 1 + (step % 3 > 0)], "lr": 1e-05 * step, "flag": True})
    return records


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lines_of_one_layout_are_read_as_lines_one_by_one(tmp_path: Path, seed: int) -> None:
    run = write(tmp_path, *in_layouts(400, seed))
    log = read_log(run, batch_size=3)
    with mock.patch.object(metrics_log, "FEWEST_ALIKE", 1000):
        one_by_one = read_log(run, batch_size=3)
    assert log.columns.keys() == one_by_one.columns.keys()
    for key, columns in log.columns.items():
        for values, expected in zip(columns, one_by_one.columns[key], strict=True):
            assert values.tolist() == expected.tolist(), key
    assert (log.epochs, log.phases) == (one_by_one.epochs, one_by_one.phases)
    assert log.columns["raw.l1"][1].tolist() == [record["raw"]["l1"] for record in in_layouts(400, seed)]


@pytest.mark.parametrize(
    "other", ['"l2": 7', '"l1": 7, "l1": 8', '"l1": [7]', '"l1": "7"', '"l1": -Infinity', '"l1x: 3": 7']
)
def test_lines_that_only_seem_to_have_one_layout_are_told_apart(tmp_path: Path, other: str) -> None:
    lines = [f'{{"step": {step}, "raw": {{"l1": {step}}}}}' for step in range(1, 20)]
    log = read_log(write(tmp_path, tail="\n".join([*lines, f'{{"step": 20, "raw": {{{other}}}}}', ""])), batch_size=1)
    expected = json.loads(f"{{{other}}}").get("l1")
    is_number = isinstance(expected, int)
    assert log.columns["raw.l1"][1].tolist() == [*range(1, 20), *([expected] if is_number else [])]


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "1e999"])
def test_a_number_that_no_float_reaches_is_no_point_among_lines_of_one_layout(tmp_path: Path, number: str) -> None:
    lines = [f'{{"step": {step}, "total": {step if step != 9 else number}}}' for step in range(1, 40)]
    columns = read_log(write(tmp_path, tail="\n".join([*lines, ""])), batch_size=1).columns
    assert columns["total"][1].tolist() == [step for step in range(1, 40) if step != 9]


@pytest.mark.parametrize("form", ["{}e1", "{}E1", "{}e+01", "{}E-2", "-{}.5e0", "{}.0", "0.{}e2"])
@pytest.mark.parametrize("others", ["{}", "same"])
def test_numbers_of_any_form_are_read_as_lines_one_by_one(tmp_path: Path, form: str, others: str) -> None:
    texts = [form.format(step) if others == "same" or step == 9 else others.format(step) for step in range(1, 40)]
    lines = [f'{{"step": {step}, "total": {text}}}' for step, text in enumerate(texts, 1)]
    columns = read_log(write(tmp_path, tail="\n".join([*lines, ""])), batch_size=1).columns
    assert columns["total"][1].tolist() == list(map(float, texts))


@pytest.mark.parametrize("name", ["1.2.3", "block01", "a-b", "x.5", "e-3", "e+", "2e-3", "4,5", "n: 6", "[7", "é8", ""])
def test_names_of_any_form_are_read_as_lines_one_by_one(tmp_path: Path, name: str) -> None:
    records = [{"step": step, name: step / 7, "raw": {name: -step, "": 1e-300}} for step in range(1, 40)]
    columns = read_log(write(tmp_path, *records), batch_size=1).columns
    assert columns[name][1].tolist() == [step / 7 for step in range(1, 40)]
    assert columns[f"raw.{name}"][1].tolist() == [1e-300 if name == "" else -step for step in range(1, 40)]


def test_lines_of_one_layout_that_differ_in_a_name_s_number_are_told_apart(tmp_path: Path) -> None:
    records = [{"step": step, "raw": {f"l{1 + step % 2}": step}} for step in range(1, 41)]
    columns = read_log(write(tmp_path, *records), batch_size=1).columns
    assert columns["raw.l1"][1].tolist() == list(range(2, 41, 2))
    assert columns["raw.l2"][1].tolist() == list(range(1, 41, 2))


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, {"step": 1, "total": 3.0}, tail='{"step": 2, "tot'), batch_size=1)
    assert log.columns["total"][1].tolist() == [3.0]


@pytest.mark.parametrize("line", ["{", "[1]", "", "[" * 5000])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    run = write(tmp_path, {"step": 1, "total": 3.0}, tail=f'{line}\n{{"step": 3, "total": 1.0}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is no JSON object; remove that line"):
        read_log(run, batch_size=1)


def test_what_is_no_finite_number_is_no_point_of_a_curve(tmp_path: Path) -> None:
    lines = ['{"step": 1, "total": NaN}', '{"step": 2, "total": "3"}', '{"step": 3, "total": 1e999}']
    lines += [f'{{"step": 4, "total": 1{"0" * 400}}}', '{"step": 5, "total": true}', '{"step": 6, "total": 7}']
    log = read_log(write(tmp_path, tail="\n".join([*lines, '{"step": "x", "total": 8}', ""])), batch_size=1)
    assert [part.tolist() for part in log.columns["total"]] == [[6], [7]]


def test_a_run_without_metrics_has_an_empty_log(tmp_path: Path) -> None:
    assert read_log(tmp_path, batch_size=1) == metrics_log.MetricsLog({}, {}, {})


def test_several_processes_read_what_one_reads(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, *({"step": step, "total": step * 0.1} for step in range(20))) for name in "ab"]
    with mock.patch.object(metrics_log, "LARGE", 10):
        logs = read_logs(runs, [1, 2])
    assert [log.columns["total"][0].tolist() for log in logs] == [list(range(20)), list(range(0, 40, 2))]


def test_a_term_is_on_from_the_record_before_its_first_to_its_last(tmp_path: Path) -> None:
    active = [["l1"], ["l1"], ["l1", "style"], ["l1", "style"], ["l1"]]
    records = [{"step": 10 * step, "active": names} for step, names in enumerate(active, 1)]
    phases = read_log(write(tmp_path, *records), batch_size=1).phases
    assert phases == {"l1": [(0, 50, 1.0)], "style": [(20, 40, 1.0)]}


def test_of_many_phases_the_share_of_time_remains(tmp_path: Path) -> None:
    records = [{"step": step, "active": ["l1", "style"] if step % 2 else ["l1"]} for step in range(1, 4001)]
    phases = read_log(write(tmp_path, *records), batch_size=1).phases
    assert len(phases["style"]) == metrics_log.MOST_INTERVALS
    assert sum((end - start) * share for start, end, share in phases["style"]) == pytest.approx(2000)


@pytest.mark.parametrize("most", [10, 50, 200])
def test_thinning_keeps_the_ends_and_the_extremes_and_the_order(most: int) -> None:
    values = np.random.default_rng(0).normal(size=1003)
    values[[317, 801]] = -50, 60
    seen = np.arange(1003.0) * 128
    at, kept = thin(seen, values, most)
    assert len(kept) <= most
    assert (kept.min(), kept.max(), kept[0], kept[-1]) == (-50, 60, values[0], values[-1])
    assert (np.diff(at) > 0).all()
    assert (kept == values[(at / 128).astype(int)]).all()


def test_a_part_that_thinning_shortens_keeps_its_own_extremes() -> None:
    values = np.random.default_rng(1).normal(size=1000)
    at, kept = thin(np.arange(1000.0), values, 102)  # 50 parts of 20
    for start in range(0, 1000, 20):
        part = kept[(at >= start) & (at < start + 20)]
        assert part.min() == values[start : start + 20].min()
        assert part.max() == values[start : start + 20].max()


def test_few_points_are_not_thinned() -> None:
    seen, values = np.arange(5.0), np.arange(5.0) ** 2
    assert thin(seen, values, 5) == (seen, values)


def test_alarms_are_the_warnings_of_a_step_that_the_run_has_taken_each_once(tmp_path: Path) -> None:
    lines = ["INFO step 3: not an alarm", "WARNING step 8: wins", "WARNING leaks", "WARNING step 4: <b>dominates</b>"]
    lines += ["WARNING step 8: wins", "WARNING step 900: of a lost future"]
    (tmp_path / "log.txt").write_text("".join(f"2026-01-01 00:00:00 {line}\n" for line in lines) + "more\n")
    alarms = read_alarms(tmp_path, batch_size=16, images_seen=1000)
    assert [(each.step, each.images_seen, each.message) for each in alarms] == [
        (4, 64, "<b>dominates</b>"),
        (8, 128, "wins"),
    ]


def test_a_run_without_a_log_has_no_alarms(tmp_path: Path) -> None:
    assert read_alarms(tmp_path, batch_size=16, images_seen=1000) == []
