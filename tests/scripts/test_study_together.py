"""Cells of a study at the same time: each waits for what it needs, fails alone, and a stop reaches all."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import conduct
from conduct import Conductor
from conftest import DEBUG
from perceptual_mae.run.signals import StopSignal
from study import Cell, Study
from studying import BATCH, InProcess
from together import run_together

NOTHING = StopSignal()


def cell(name: str, *words: str, result: Path, needs: tuple[Path, ...] = ()) -> Cell:
    return Cell(name, words, result, "kind", needs=needs)


def test_cells_run_at_once_but_none_before_what_it_needs_and_a_mistake_stays_its_own(tmp_path: Path) -> None:
    first = tmp_path / "first"
    cells = [
        cell("last", "configs", result=tmp_path / "last", needs=(first,)),
        cell("first", "configs", result=first),
        cell("wrong", "evaluate", str(tmp_path / "none"), result=tmp_path / "wrong"),
    ]
    began: list[str] = []

    def begin(each: Cell) -> bool:
        began.append(each.name)
        return True

    ended = {each.cell.name: each for each in run_together(cells, 2, tmp_path / "logs", begin, NOTHING)}
    assert began == ["first", "wrong", "last"]
    assert [ended[name].ending.code for name in ("first", "wrong", "last")] == [0, 2, 0]
    assert "none" in ended["wrong"].ending.reason
    assert all(each.cpu > 0 for each in ended.values())
    assert "stylegan2_ada_p" in (tmp_path / "logs" / "first.txt").read_text()


def test_what_is_refused_is_not_run(tmp_path: Path) -> None:
    cells = [cell("only", "configs", result=tmp_path / "only")]
    assert list(run_together(cells, 2, tmp_path / "logs", lambda _: False, NOTHING)) == []


def two_runs(out: Path, epochs: int = 2) -> Study:
    study = Study("two", "Two runs", out)
    for seed in (0, 1):
        words = [DEBUG, "mse", BATCH, f"training.epochs={epochs}", "evaluation.probe_images=0"]
        run = study.pretrain("mse", words, name="mse", seed=seed, kind="mse")
        study.score(run, "knn", "--limit", "8", "--test-limit", "8", "--neighbours", "1", images=16)
    return study


def test_a_study_of_two_at_a_time_leaves_what_one_at_a_time_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, apart = two_runs(tmp_path / "study"), two_runs(tmp_path / "apart")
    monkeypatch.setattr(conduct, "follow", InProcess())
    assert Conductor(apart, quick=False).run()
    assert Conductor(study, quick=False, jobs=2).run()
    for together, alone in zip(study.runs, apart.runs, strict=True):
        assert scores_of(together.scores("knn")) == scores_of(alone.scores("knn"))
        command = json.loads((together.path / "environment.json").read_text())["command"]
        assert command[0] == "pretrain"
        assert command[-1] == str(together.path)
    assert Conductor(study, quick=False, jobs=2).todo == []


def scores_of(file: Path) -> object:
    return json.loads(file.read_text())["scores"]


def test_a_stop_reaches_what_runs_and_the_same_call_goes_on(tmp_path: Path) -> None:
    study = two_runs(tmp_path / "study")

    def stop_soon() -> None:
        while not list(study.out.glob("runs/*/metrics.jsonl")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_soon)
    thread.start()
    conductor = Conductor(study, quick=False, jobs=2)
    assert not conductor.run()
    thread.join()
    assert {record["status"] for record in conductor.records.values()} >= {"stopped"}
    assert {log.stem for log in study.out.glob("logs/*")} <= {"mse_s0", "mse_s1"}
    again = Conductor(study, quick=False, jobs=2)
    assert again.run()
    assert again.failed == []


TYPED = """
import sys
from pathlib import Path

sys.path[:0] = sys.argv[2:]
from conduct import Conductor
from test_study_together import two_runs

if __name__ == "__main__":
    print(Conductor(two_runs(Path(sys.argv[1]), epochs=200), quick=False, jobs=2).run())
"""


@pytest.mark.parametrize(("number", "says"), [(signal.SIGINT, "False"), (signal.SIGKILL, "")])
def test_ctrl_c_on_a_terminal_and_a_kill_let_what_runs_save(number: int, says: str, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group, and a second signal would end a run before it has saved."""
    (tmp_path / "typed.py").write_text(TYPED)
    tests, scripts = Path(__file__).parent, Path(__file__).parents[2] / "scripts"
    words = [str(tmp_path / "study"), *map(str, (tests, tests.parent, scripts, scripts / "studies"))]
    typed = [sys.executable, str(tmp_path / "typed.py"), *words]
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(typed, stdout=printed, start_new_session=True)
    logs = [tmp_path / "study/logs" / f"mse_s{seed}.txt" for seed in (0, 1)]
    while not all(log.exists() and " steps of " in log.read_text() for log in logs):
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    process.wait(timeout=60)
    assert (tmp_path / "printed").read_text().strip() == says
    deadline = time.monotonic() + 30
    while not all("stopped and saved after step" in log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [log.read_text().count("stopped and saved after step") for log in logs] == [1, 1], logs[0].read_text()
