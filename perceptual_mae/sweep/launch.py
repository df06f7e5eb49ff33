"""A command in a process of its own, so that neither its memory nor its failure reaches the next one."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from perceptual_mae.run.signals import StopSignal

PMAE = (sys.executable, "-P", "-m", "perceptual_mae.cli")
"""`pmae` of this installation, whatever the shell's PATH is; -P: no file of the current folder shadows a module."""
LINES_KEPT = 20
SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
PATIENCE = 0.2
"""Seconds between two checks whether a stop was requested."""


@dataclass(frozen=True)
class Ending:
    """How a process ended: its exit code, the reason in words ("" for 0), and its last lines."""

    code: int
    reason: str = ""
    lines: tuple[str, ...] = ()


def launch(arguments: Sequence[str], out: Path, on_line: Callable[[str], None], stop: StopSignal) -> Ending:
    """Train one run with `pmae pretrain`, passing on its lines as they come; a stop is handed on to it, once."""
    return follow([*PMAE, "pretrain", *arguments, "--out", str(out)], on_line, stop)


def follow(command: Sequence[str], on_line: Callable[[str], None], stop: StopSignal) -> Ending:
    """Run a command to its end, passing on its lines as they come; a stop is handed on to it, once.

    On Linux it is asked to stop where this process is killed: it would go on in a folder that the next call trains in.
    """
    last: deque[str] = deque(maxlen=LINES_KEPT)
    # In a group of its own, Ctrl-C on the terminal reaches the run through us alone: a second signal would cut it off.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
        preexec_fn=_ending_with_parent(),
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=_pass_on, args=(process.stdout, last, on_line), daemon=True)
        reader.start()
        has_asked = False
        while True:
            try:
                code = process.wait(PATIENCE)
                break
            except subprocess.TimeoutExpired:
                if stop.requested and not has_asked:
                    process.send_signal(signal.SIGINT)
                    has_asked = True
        reader.join()
    return Ending(code, reason_of(code, last), tuple(last))


def reason_of(code: int, lines: Sequence[str]) -> str:
    """Return why a process failed, in a line: its messages to the user, else its last line."""
    if code == 0:
        return ""
    if code < 0:
        more = " (the system may have run out of memory)" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{more}"
    messages = [line.removeprefix("pmae: ") for line in lines if line.startswith("pmae: ")]
    printed = [line for line in lines if line.strip()]
    return "; ".join(messages) if messages else printed[-1].strip() if printed else f"exit code {code}"


def _ending_with_parent() -> Callable[[], None] | None:
    """Return what a new process does to get a SIGTERM when this one is gone, however it went; None where none can."""
    if sys.platform != "linux":
        return None
    # All that allocates or locks is done before the process is forked.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def _pass_on(pipe: IO[str], last: deque[str], on_line: Callable[[str], None]) -> None:
    for line in pipe:
        last.append(line.rstrip("\n"))
        on_line(line.rstrip("\n"))
