"""Processes of a test: forks of a server that has imported the package once; two gloo processes, and a launcher's."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np

TESTS = Path(__file__).resolve().parent
PRELOADED = ("conftest", "perceptual_mae.training.loop", "perceptual_mae.evaluation.open_run", "sklearn.linear_model")
"""Modules whose imports take most of a process's start."""


def fork(words: Sequence[str], printed: Sequence[Path], variables: Mapping[str, str] | None = None) -> BaseProcess:
    """Start what `python WORDS` would run: a script, `-m MODULE` or `-c CODE`, with its arguments.

    Its imports are made already, so it starts at once, in a session of its own. It is no interpreter of its own: what
    is registered for an interpreter's end is not run. printed: files that stdout and stderr are added to.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    for file in printed:
        file.touch()
    environment = os.environ | _importing() | dict(variables or {})
    process = context.Process(target=_run, args=(list(words), environment, list(printed)))
    with mock.patch.dict(os.environ, _importing()):  # of the server, which the first process starts
        process.start()
    return process


def run_two_processes(*command: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a script, or `-m MODULE`, with its arguments as two gloo processes, which find what this one can import.

    Fails with what they printed where one of them does.
    """
    words, deadline = [str(word) for word in command], time.monotonic() + timeout
    with TemporaryDirectory() as folder, socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(any_port.getsockname()[1]), "WORLD_SIZE": "2"}
        any_port.close()
        printed = [Path(folder) / stream for stream in ("stdout", "stderr")]
        ranks = [fork(words, printed, given | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
        codes = _exit_codes(ranks, deadline)
        stdout, stderr = (file.read_text() for file in printed)
    assert codes == [0, 0], f"{codes}: {stderr}"
    return subprocess.CompletedProcess(words, 0, stdout, stderr)


def launch_two_processes(*command: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Do what `run_two_processes` does by PyTorch's launcher, as a user does: it starts an interpreter for each."""
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, command)],
        env=os.environ | _importing(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    return result


def _importing() -> dict[str, str]:
    """Return what makes a new interpreter find what this one can import, in one thread."""
    paths = [str(TESTS.parent), *(path for path in sys.path if Path(path).is_relative_to(TESTS))]
    return {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _run(words: Sequence[str], environment: dict[str, str], printed: Sequence[Path]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for stream, file in enumerate(printed, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    np.random.seed()
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _exit_codes(ranks: Sequence[BaseProcess], deadline: float) -> list[int | None]:
    """Wait until both have ended, one has failed, or time is up; return the exit codes, and end what still runs."""
    running = {process.sentinel: process for process in ranks}
    while running and time.monotonic() < deadline and not any(process.exitcode for process in ranks):
        for sentinel in wait(list(running), timeout=1.0):
            running.pop(sentinel).join()
    codes = [process.exitcode for process in ranks]
    for process in running.values():
        process.kill()
        process.join()
    return codes
