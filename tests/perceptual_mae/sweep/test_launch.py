"""Why a process failed, in a line; and that a run is asked to stop once, and waited for."""

import signal
import sys
from pathlib import Path

import pytest

from perceptual_mae.run.signals import StopSignal
from perceptual_mae.sweep import launch as launching
from perceptual_mae.sweep.launch import launch, reason_of

PATIENT = """
import signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
print("up", flush=True)
while not asked:
    time.sleep(0.02)
time.sleep(0.6)  # three looks of the sweep's: a second signal would show
print("asked", len(asked), flush=True)
sys.exit(130)
"""


@pytest.mark.parametrize(
    ("code", "lines", "reason"),
    [
        (0, ["pmae: unheard"], ""),
        (2, ["chatter", "pmae: a: wrong", "pmae: b: wrong"], "a: wrong; b: wrong"),
        (1, ["Traceback", "ValueError: deep", ""], "ValueError: deep"),
        (-9, ["epoch 1"], "killed by SIGKILL (the system may have run out of memory)"),
        (-15, [], "killed by SIGTERM"),
        (3, [], "exit code 3"),
    ],
)
def test_a_failure_has_a_reason_in_a_line(code: int, lines: list[str], reason: str) -> None:
    assert reason_of(code, lines) == reason


def test_a_stop_is_handed_on_once_and_the_run_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real, reported, stop = launching.subprocess.Popen, list[str](), StopSignal()
    monkeypatch.setattr(
        launching.subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", PATIENT], **options)
    )

    def tell(line: str) -> None:
        reported.append(line)
        if line == "up":
            stop.number = signal.SIGINT

    ending = launch([], tmp_path, tell, stop)
    assert reported == ["up", "asked 1"]
    assert (ending.code, ending.lines) == (130, ("up", "asked 1"))
