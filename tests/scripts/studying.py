"""What tests of studies share: a study of debug size, and a stand-in for the processes of its cells."""

import json
import signal
import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import improved_mae
from budget import images_of
from conftest import DEBUG
from perceptual_mae.cli import main
from perceptual_mae.run.signals import StopSignal
from perceptual_mae.sweep.launch import PMAE, Ending
from study import Study

SMALL = improved_mae.Form(
    seeds=(0, 1), images=0, epochs=2, layer=DEBUG, patch_size=8, labels=16, finetune_labels=12, test_images=8
)

BATCH = "training.batch_size=8"


def small_study(out: Path, *overrides: str) -> Study:
    return improved_mae.plan(SMALL, out, (BATCH, *overrides))


class InProcess:
    """Runs cells of `pmae` in this process, which need not start for each; scripts start one.

    `monotonic` is a clock for them: a second for each, and a hundredth for each image.
    """

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def __call__(self, command: Sequence[str], tell: Callable[[str], None], stop: StopSignal) -> Ending:
        if tuple(command[: len(PMAE)]) != PMAE:
            return Ending(subprocess.run(command, check=False).returncode)
        words = command[len(PMAE) :]
        self.ran.append(words[0])
        given = dict(pairwise(words))
        is_training = words[0] == "pretrain"
        images = images_of(tuple(words[1:-2])) if is_training else int(given.get("--limit", 0))
        self.now += 1 + 0.01 * images * int(given.get("--epochs", 1))
        return Ending(main(command[len(PMAE) :]))


class Stand:
    """Leaves the file that a cell would leave; names of `failing` fail, at `stop_at` the user stops.

    The user stops at `stopped_after`, too, but that cell comes to its end.
    """

    def __init__(self, study: Study) -> None:
        self.results = {tuple(cell.command): (cell.name, cell.result) for cell in study.cells}
        self.ran: list[str] = []
        self.failing: set[str] = set()
        self.stop_at = self.stopped_after = ""

    def __call__(self, command: Sequence[str], tell: Callable[[str], None], stop: StopSignal) -> Ending:
        name, result = self.results[tuple(command)]
        self.ran.append(name)
        if name == self.stop_at:
            stop.number = signal.SIGINT
            return Ending(130)
        if name in self.failing:
            return Ending(2, "out of luck", ("pmae: out of luck",))
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps({}))
        stop.number = signal.SIGINT if name == self.stopped_after else 0
        return Ending(0)
