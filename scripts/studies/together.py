"""Cells of a study at the same time: each in a process of its own, forked from one that has loaded PyTorch already."""

import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from perceptual_mae.cli import main as pmae
from perceptual_mae.run.lock import Holder, this_process
from perceptual_mae.run.signals import StopSignal
from perceptual_mae.sweep.launch import LINES_KEPT, PATIENCE, Ending, reason_of
from study import Cell

PRELOADED = ("together", "perceptual_mae.training.loop", "perceptual_mae.evaluation.open_run", "sklearn.linear_model")


@dataclass(frozen=True)
class Ended:
    """A cell that ended, how, and what it took: seconds by the clock, and of CPU time."""

    cell: Cell
    ending: Ending
    clock: float
    cpu: float


@dataclass(frozen=True)
class _Running:
    cell: Cell
    process: BaseProcess
    printed: Path
    began: float


def run_together(
    cells: Sequence[Cell], jobs: int, logs: Path, begin: Callable[[Cell], bool], stop: StopSignal
) -> Iterator[Ended]:
    """Run up to `jobs` cells at once, and yield each as it ends; what it printed stays in a file below `logs`.

    A cell waits for those that make what it needs or reads. `begin` is called before one starts and may refuse it. A
    stop is handed on to those that run, once, and no other is begun.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, has_asked = list(cells), dict[Connection, _Running](), False
    threads = max(1, (os.cpu_count() or 1) // jobs)
    while running or (waiting and not stop.requested):
        while len(running) < jobs and not stop.requested and (cell := _next(waiting, running.values())) is not None:
            waiting.remove(cell)
            if not begin(cell):
                continue
            receiver, sender = context.Pipe(duplex=False)
            printed = logs / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', cell.name)}.txt"
            process = context.Process(target=_run, args=(cell.words, printed, threads, this_process(), sender))
            process.start()
            sender.close()
            running[receiver] = _Running(cell, process, printed, time.monotonic())
        if stop.requested and not has_asked:
            for each in running.values():
                each.process.terminate()
            has_asked = True
        for receiver in wait(list(running), PATIENCE):
            assert isinstance(receiver, Connection)
            yield _ended(running.pop(receiver), receiver)


def _next(waiting: Sequence[Cell], running: Iterable[_Running]) -> Cell | None:
    """Return the first cell that nothing it needs or reads is still to be made for."""
    to_come = {cell.result for cell in waiting} | {each.cell.result for each in running}
    return next((cell for cell in waiting if to_come.isdisjoint((*cell.needs, *cell.reads))), None)


def _run(words: Sequence[str], printed: Path, threads: int, study: Holder, sender: Connection) -> None:
    """Run a command of `pmae` in this process, and send its exit code and the CPU time that it took.

    In a group of its own it gets Ctrl-C from the study alone; where the process `study` is killed, it is asked to stop.
    """
    os.setpgrp()
    threading.Thread(target=_end_with, args=(study,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    torch.set_num_threads(threads)
    with printed.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["pmae", *words]  # runs record it
    code = pmae(list(words))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    with suppress(BrokenPipeError):  # the study was killed
        sender.send((code, sum(each.ru_utime + each.ru_stime for each in used)))


def _end_with(study: Holder) -> None:
    while not study.is_gone(silence=0.0):
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _ended(running: _Running, receiver: Connection) -> Ended:
    try:
        code, cpu = receiver.recv()
    except EOFError:  # it sent nothing: it was killed, or ended by an error of its own
        code, cpu = None, 0.0
    running.process.join()
    lines = running.printed.read_text(errors="replace").splitlines()[-LINES_KEPT:] if running.printed.exists() else []
    code = code if code is not None else running.process.exitcode or 1
    ending = Ending(code, reason_of(code, lines), tuple(lines))
    return Ended(running.cell, ending, time.monotonic() - running.began, cpu)
