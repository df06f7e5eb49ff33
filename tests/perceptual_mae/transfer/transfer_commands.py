"""What the tests of `pmae segment` and `pmae detect` share: a command, what it leaves, its stops and mistakes."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import ask_to_stop, at_call
from safetensors.torch import load_file
from torch import Tensor

from perceptual_mae.cli import main
from perceptual_mae.transfer import training


@dataclass(frozen=True)
class TransferCommand:
    """A command on the folder `run`, a file of a recipe and a folder of data; `small` overrides make it seconds."""

    command: str
    recipe: str
    data: str
    small: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the names of the files that it writes begin."""
        return f"{self.command}_{Path(self.recipe).stem}"

    def words(self, here: Path, *more: str, encoder: str = "run") -> list[str]:
        """What is typed; here: the folder that has the other folders."""
        source = encoder if ":" in encoder else str(here / encoder)
        return [self.command, source, str(here / self.recipe), *self.small, "--root", str(here / self.data), *more]

    def outcome(self, here: Path) -> dict[str, Any]:
        """All that the command leaves, but for the seconds that it took."""
        folder = here / "run/evaluation"
        report = folder / f"{self.name}.json"
        tensors = {
            name: {key: each.tolist() for key, each in held.items()} for name, held in tensors_in(folder).items()
        }
        records = {path.name: records_in(path) for path in sorted(folder.glob("*.jsonl"))}
        others = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path != report}
        for name in (*tensors, *records):
            del others[name]
        return {"report": json.loads(report.read_text()), "records": records, "tensors": tensors, "others": others}

    def unbroken(self, place: Path, copy: Path, *more: str) -> dict[str, Any]:
        """The outcome of a command that is not stopped, in a copy of the folder."""
        torch.set_num_threads(1)
        here = Path(shutil.copytree(place, copy))
        assert main(self.words(here, *more)) == 0
        return self.outcome(here)

    def assert_same_bits_after_a_stop(
        self, here: Path, step: int, unbroken: dict[str, Any], capsys: pytest.CaptureFixture[str], *more: str
    ) -> None:
        """Stop the command at a step and repeat it: nothing differs, running statistics included."""
        with stop_at(step):
            assert main(self.words(here, *more)) == 130
        assert "the same command goes on from there" in capsys.readouterr().err
        assert not (here / f"run/evaluation/{self.name}.json").exists()
        assert main(self.words(here, *more)) == 0
        resumed = self.outcome(here)
        resumed["report"]["recipe"]["data"]["root"] = unbroken["report"]["recipe"]["data"]["root"]  # another folder
        assert resumed == unbroken
        assert not (here / f"run/evaluation/{self.name}.unfinished").exists()

    def assert_mistake(self, place: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        """The command ends with one line, and nothing is written."""
        before = sorted(place.rglob("*"))
        assert main(self.words(place, *more)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert sorted(place.rglob("*")) == before


def stop_at(step: int) -> Any:
    """Ask the command to stop, by SIGTERM, when it takes the given step."""
    return at_call((training, "set_learning_rate"), step, ask_to_stop)


def tensors_in(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def records_in(path: Path) -> list[dict[str, Any]]:
    """The records of a training without images a second."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in records]
