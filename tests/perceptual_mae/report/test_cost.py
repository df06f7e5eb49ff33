"""Relative times from a bench, never from anything else; parameters of both networks."""

import json
from pathlib import Path

import pytest

from conftest import DEBUG
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError
from perceptual_mae.report.comparison import compare
from perceptual_mae.report.cost import parameters
from run_folders import make_run


def make_bench(path: Path, times: dict[str, float], batch_size: int = 8) -> Path:
    configurations = [
        {"name": name, "batch_size": batch_size, "milliseconds": {"median": time}} for name, time in times.items()
    ]
    path.write_text(json.dumps({"device": "cpu", "threads": 1, "rounds": 5, "configurations": configurations}))
    return path


def times_of(found) -> list[str]:
    return [row.cells[1] for row in found.tables[-1].rows if not row.is_paper]


def test_times_are_relative_to_the_slowest_where_the_papers_unit_is_absent(tmp_path: Path):
    paths = [make_run(tmp_path / name, name) for name in ("mse", "ls_gan_p", "ls_gan")]
    bench = make_bench(tmp_path / "bench.json", {f"{DEBUG} mse": 30.0, f"{DEBUG} ls_gan_p": 120.0})
    found = compare(paths, title="t", bench=bench)
    assert times_of(found) == ["0.25", "1.00", "-"]
    assert any("LS-GAN-P = 1" in note for note in found.tables[-1].notes)
    assert any("no configuration of the cost of LS-GAN" in note for note in found.tables[-1].notes)


def test_times_are_relative_to_the_papers_unit_where_it_is_there(tmp_path: Path):
    names = ("mse", "stylegan2_ada_p discriminator.channel_base=256", "ls_gan_p")
    paths = [make_run(tmp_path / str(number), *name.split()) for number, name in enumerate(names)]
    bench = make_bench(
        tmp_path / "bench.json", {f"{DEBUG} {name}": time for name, time in zip(names, (30, 60, 120), strict=True)}
    )
    assert times_of(compare(paths, title="t", bench=bench)) == ["0.50", "1.00", "2.00"]


def test_a_bench_of_another_batch_size_or_architecture_is_no_time(tmp_path: Path):
    run = make_run(tmp_path / "a")
    for bench in (
        make_bench(tmp_path / "batch.json", {f"{DEBUG} mse": 1.0}, batch_size=16),
        make_bench(tmp_path / "width.json", {f"{DEBUG} mse generator.width=64": 1.0}),
    ):
        assert times_of(compare([run], title="t", bench=bench)) == ["-"]


def test_recorded_speed_is_a_median_and_makes_no_relative_time(tmp_path: Path):
    run = make_run(tmp_path / "a")
    lines = [{"images_per_second": speed} for speed in (5.0, 900.0, 100.0)] + [{"evaluation": {}}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"images_per_sec')
    found = compare([run], title="t")
    assert times_of(found) == ["-"]
    assert found.tables[-1].rows[0].cells[2] == "100"
    assert any("pmae bench" in note for note in found.tables[-1].notes)


@pytest.mark.parametrize("content", ["", "[]", '{"configurations": [{}]}'])
def test_what_is_no_bench_is_refused(content: str, tmp_path: Path):
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(UserError, match=r"is no file of pmae bench --json"):
        compare([make_run(tmp_path / "a")], title="t", bench=tmp_path / "bench.json")


def test_parameters_are_those_that_a_dry_run_says():
    generator, discriminator = parameters(load_config(["quickstart"]))
    assert (generator, discriminator) == (1.040752, 0.168033)
    assert parameters(load_config(["quickstart", "mse"]))[1] is None
