"""Running a study: what is done is skipped, what was stopped goes on, what fails is told and the rest goes on."""

import json
import resource
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from costs import CLOCK, CPU, Costs, measure
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError
from perceptual_mae.files import write_atomically, write_json
from perceptual_mae.run.folder import differences, read_config
from perceptual_mae.run.signals import StopSignal
from perceptual_mae.sweep.launch import follow
from study import Cell, Study
from together import Ended, run_together

BEGUN, STOPPED, SKIPPED = "begun", "stopped", "skipped"
"""How cells may be that are neither finished nor failed; one that stays begun was under way when a call was killed."""
RECORD, COMMANDS, LOGS = "study.json", "commands.sh", "logs"
MAY_DIFFER = ("data.root=", "data.workers=")
KEPT = "runs"
"""What may be left of a study: its runs' configurations, summaries and scores, without records and checkpoints."""


class Conductor:
    """Runs the cells of a study, `jobs` at the same time; `records` says by name how they ended, of earlier calls too.

    One at a time they run in their order, and what they print is shown.
    """

    def __init__(self, study: Study, *, quick: bool, jobs: int = 1) -> None:
        self.study, self.quick, self.jobs = study, quick, jobs
        self.records = read_records(study, quick=quick)
        self.console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

    @property
    def todo(self) -> list[Cell]:
        """The cells that are not done."""
        return [cell for cell in self.study.cells if not self.is_done(cell)]

    @property
    def failed(self) -> list[str]:
        names = {cell.name for cell in self.study.cells}
        return [name for name, record in self.records.items() if record["status"] != "finished" and name in names]

    def costs(self, counted: str) -> Costs | None:
        """Return what the cells so far tell of costs, by the clock or in CPU time."""
        return measure(self.records.values(), counted)

    def is_done(self, cell: Cell) -> bool:
        """Tell whether a cell's file is there, is of this command, and not older than what it reads."""
        record = self.records.get(cell.name)
        if not cell.result.exists():
            return False
        if record is None:
            return bool(cell.kind)
        made = cell.result.stat().st_mtime
        sources = () if cell.kind else (*cell.needs, *cell.reads)
        is_stale = any(path.exists() and path.stat().st_mtime > made for path in sources)
        same = bool(cell.kind) or record["command"] == cell.line
        return record["status"] == "finished" and same and not is_stale

    def list_cells(self) -> list[str]:
        """Return a line for each cell: how far it is, and its command."""
        return [f"{'done' if self.is_done(cell) else 'to do':6}{cell.line}" for cell in self.study.cells]

    def run(self) -> bool:
        """Run what is not done; return False when asked to stop."""
        self.study.out.mkdir(parents=True, exist_ok=True)
        self._write()  # first: it says whose folder this is
        write_commands(self.study)
        todo = self.todo
        if skipped := len(self.study.cells) - len(todo):
            self.console.print(f"study: {skipped} of {len(self.study.cells)} cells are done already")
        with StopSignal() as stop:
            for number, ended in enumerate(self._endings(todo, stop), 1):
                self._end(ended, stop)
                if self.jobs > 1:
                    took = f"{ended.clock:.0f} s" if ended.ending.code == 0 else ended.ending.reason
                    self.console.print(f"study: {number} of {len(todo)} cells, {ended.cell.name}: {took}")
            if stop.requested:
                self.console.print("study: stopped; the same command goes on from here")
        return not stop.requested

    def _endings(self, todo: list[Cell], stop: StopSignal) -> Iterator[Ended]:
        if self.jobs > 1:
            yield from run_together(todo, self.jobs, self.study.out / LOGS, self._begin, stop)
            return
        for number, cell in enumerate(todo):
            self.console.print(f"study: cell {number + 1} of {len(todo)}, {cell.name}{self._left(todo[number:])}")
            if self._begin(cell):
                began, worked = time.monotonic(), cpu_seconds()
                ending = follow(cell.command, lambda line: self.console.print(f"  {line}"), stop)
                yield Ended(cell, ending, time.monotonic() - began, cpu_seconds() - worked)
            if stop.requested:
                return

    def _begin(self, cell: Cell) -> bool:
        """Record that a cell is under way; return False where what it needs is not there."""
        record: dict[str, Any] = {"command": cell.line, "kind": cell.kind, "images": cell.images, "starts": cell.starts}
        if missing := [str(path) for path in cell.needs if not path.exists()]:
            self._note(cell, {**record, "status": SKIPPED, "reason": f"{', '.join(missing)}: not there"})
            return False
        before = self.records.get(cell.name, {}) if cell.kind else {}
        # What a stopped call left would make the rest look cheap.
        is_whole = not cell.result.parent.exists() or not cell.kind.startswith(("pretrain", "sweep", "sharpen"))
        record |= {"whole": is_whole and before.get("status", SKIPPED) == SKIPPED, "jobs": self.jobs}
        spent = {counted: before[counted] for counted in (CLOCK, CPU) if counted in before}
        self._note(cell, {**record, **spent, "status": BEGUN})
        return True

    def _end(self, ended: Ended, stop: StopSignal) -> None:
        cell, ending, record = ended.cell, ended.ending, self.records[ended.cell.name]
        for counted, seconds in ((CLOCK, ended.clock), (CPU, ended.cpu)):
            record[counted] = round(record.get(counted, 0.0) + seconds, 2)
        if ending.code == 0 and cell.result.exists():
            self._note(cell, {**record, "status": "finished"})
        elif stop.requested:
            self._note(cell, {**record, "status": STOPPED, "reason": "it goes on with the same command"})
        else:
            reason = ending.reason or f"it left no {cell.result}"
            self._note(cell, {**record, "status": "failed", "reason": reason, "last_lines": list(ending.lines)})

    def _note(self, cell: Cell, record: dict[str, Any]) -> None:
        if record["status"] not in ("finished", BEGUN, STOPPED):
            self.console.print(f"study: {cell.name} {record['status']}: {record['reason']}")
        self.records[cell.name] = record
        self._write()

    def _write(self) -> None:
        write_json(self.study.out / RECORD, {"study": self.study.name, "quick": self.quick, "cells": self.records})

    def _left(self, cells: list[Cell]) -> str:
        """Say how long the rest will take, as far as what was run tells."""
        costs = self.costs(CLOCK)
        if costs is None:
            return ""
        seconds = [costs.seconds(cell) for cell in cells]
        known = timedelta(seconds=round(sum(each for each in seconds if each is not None)))
        return f", left {known}" + (" or more" if None in seconds else "")


def read_records(study: Study, *, quick: bool) -> dict[str, dict[str, Any]]:
    """Return how the cells of earlier calls ended. Raises UserError where the folder holds something else."""
    path = study.out / RECORD
    if study.out.exists() and not study.out.is_dir():
        raise UserError(f"--out: {study.out} is a file; name a folder")
    if not path.exists():
        left = list(study.out.iterdir()) if study.out.exists() else []
        if any(each.name != KEPT and not each.name.startswith(".") for each in left):
            raise UserError(f"--out: {study.out} holds files that are not a study's; choose an empty folder")
        check_kept(study)
        return {}
    try:
        before = json.loads(path.read_text())
        records: dict[str, dict[str, Any]] = before["cells"]
    except (ValueError, KeyError) as damage:
        raise UserError(f"{path}: cannot be read ({damage}); choose another --out") from damage
    if before["study"] != study.name or before["quick"] != quick:
        form = "quick" if before["quick"] else "full"
        raise UserError(f"--out: {study.out} holds the {form} form of {before['study']}; choose another folder")
    for cell in study.cells:
        record = records.get(cell.name)
        if record and cell.kind and record["status"] == "finished" and _words(record["command"]) != _words(cell.line):
            raise UserError(
                f"{study.out}: {cell.name} was made by another command ({record['command']}); repeat the study as it "
                "was begun, or choose another --out"
            )
    return records


def check_kept(study: Study) -> None:
    """Raise UserError for a finished run that is there without a record, and was trained with other values."""
    for cell in study.cells:
        if not cell.kind.startswith("pretrain") or not cell.result.exists():
            continue
        folder = cell.result.parent
        kept, planned = read_config(folder), load_config(cell.words[1:-2])
        changed = [] if kept.training.epochs == planned.training.epochs else ["training.epochs"]
        # Files of weights may lie elsewhere by now.
        changed += [key for key in differences(kept, planned) if not key.endswith(".weights")]
        if changed:
            raise UserError(
                f"{folder}: was trained with other values of {', '.join(changed)}; repeat the study as it was begun, "
                "or remove this folder to train the run again"
            )


def write_commands(study: Study) -> None:
    """Write the command of every cell, to be repeated by hand from the folder that the study was called in."""
    lines = ["#!/usr/bin/env bash", f"# {study.title}: what it runs, in order", "set -e", ""]
    lines += [line for cell in study.cells for line in (f"# {cell.name}", cell.line)]
    write_atomically(Path(study.out / COMMANDS), "\n".join(lines) + "\n")


def cpu_seconds() -> float:
    """Return the CPU time of all processes that were started and waited for, their own included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _words(line: str) -> list[str]:
    return [word for word in line.split() if not word.startswith(MAY_DIFFER)]
