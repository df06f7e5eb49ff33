"""A study: ordinary command lines, run one after the other, whose files are then read into tables and figures.

A cell is one command. It is done when its file is there, so that the same call of a study goes on where it was stopped,
and each can be repeated by hand.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from budget import images_of, log_often
from perceptual_mae.config.parsing import load_config
from perceptual_mae.errors import UserError
from perceptual_mae.sweep.grid import make_cells, parse_axis
from perceptual_mae.sweep.launch import PMAE

OWN = ("training.seed", "training.epochs", "evaluation.every", "evaluation.limit")
"""Keys that every study sets itself."""
GROWING = {"pretrain": (), "evaluate": ("--limit",), "probe": ("--limit", "--test-limit"), "finetune": ("--epochs",)}
"""What of a command grows in its trial; of a training the epochs."""
TRIAL = 4


@dataclass(frozen=True)
class Cell:
    """One command and the file it leaves.

    `images` pass through the network in `starts` processes; cells of one `kind` cost alike an image. A cell without
    a kind only draws or compares: it is made again when its words have changed, or files that it `needs` (it cannot
    run without them) or `reads`.
    """

    name: str
    words: tuple[str, ...]
    result: Path
    kind: str = ""
    images: int = 0
    needs: tuple[Path, ...] = ()
    reads: tuple[Path, ...] = ()
    starts: int = 1

    @property
    def command(self) -> list[str]:
        """What is run."""
        return [*PMAE, *self.words]

    @property
    def line(self) -> str:
        """What a person types, from a checkout."""
        return shlex.join(["pmae", *self.words])


@dataclass(frozen=True)
class Trained:
    """A run that a study trains: its folder, and what it is called among the cells."""

    path: Path
    kind: str
    seed: int | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def scores(self, stem: str) -> Path:
        return self.path / "evaluation" / f"{stem}.json"


@dataclass
class Study:
    """A study's folder and its cells, in the order in which they run. `rows` are the runs of each row of its tables."""

    name: str
    title: str
    out: Path
    overrides: tuple[str, ...] = ()
    """Keys of every training, such as data.root=FOLDER; what scores a run reads them in its folder."""
    varied: tuple[str, ...] = ()
    """Keys in which the rows differ: no override may set them."""
    cells: list[Cell] = field(default_factory=list)
    rows: dict[str, list[Trained]] = field(default_factory=dict)
    assumed_speed: float | None = None
    """Images of a training a second, for the hours that are stated before anything was run; None: none are."""
    mistakes: list[str] = field(default_factory=list)
    """Of configurations that cannot be read, each with the first run that has it; with one a study is not begun."""

    def __post_init__(self) -> None:
        for key in (override.partition("=")[0] for override in self.overrides):
            if any(f"{key}.".startswith(f"{each}.") or each.startswith(f"{key}.") for each in (*self.varied, *OWN)):
                raise UserError(f"--set {key}: the study sets it itself, by its rows or its options (--help)")

    def pretrain(
        self, row: str, words: Sequence[str], *, name: str, seed: int, kind: str, needs: Sequence[Path] = ()
    ) -> Trained:
        """Add a run to a row; `kind` names what decides the cost of an image: network, size, loss."""
        run = Trained(self.out / "runs" / f"{name}_s{seed}", kind, seed)
        # The study's own overrides come last: they win.
        given = [*words, *self.overrides, f"training.seed={seed}"]
        images = self._images_of(run.name, given)
        line = ("pretrain", *words, *(log_often(given, images) if images else ()), *given[len(words) :])
        line = (*line, "--out", str(run.path))
        self.cells.append(Cell(run.name, line, run.summary, f"pretrain {kind}", images, tuple(needs)))
        self.rows.setdefault(row, []).append(run)
        return run

    def sharpen(self, row: str, run: Trained, words: Sequence[str], *, name: str, share: float, images: int) -> Trained:
        """Add a run to a row that sharpens another on a share of its `images`."""
        sharpened = Trained(self.out / "runs" / f"{name}_s{run.seed}", f"{run.kind}, sharpened", run.seed)
        line = ("sharpen", str(run.path), *words, "--share", str(share), "--out", str(sharpened.path))
        kind = f"sharpen {run.kind}"
        cell = Cell(sharpened.name, line, sharpened.summary, kind, round(share * images), (run.summary,))
        self.cells.append(cell)
        self.rows.setdefault(row, []).append(sharpened)
        return sharpened

    def score(self, run: Trained, command: str, *options: str, stem: str | None = None, images: int) -> None:
        """Score a run by a command that takes --out; `images` pass through its network."""
        result = run.scores(stem or command)
        self.cells.append(
            Cell(
                f"{run.name}: {result.stem}",
                (command, str(run.path), *options, "--out", str(result)),
                result,
                f"{command} {run.kind}",
                images,
                (run.summary,),
            )
        )

    def sweep(self, words: Sequence[str], axes: Sequence[str], *, seeds: Sequence[int], kind: str) -> list[Trained]:
        """Add a sweep, a row for each point of it; return its runs."""
        out, words = self.out / "sweep", [*words, *self.overrides]
        cells = make_cells([parse_axis(axis) for axis in axes], seeds)
        images = sum(self._images_of(cell.name, cell.arguments(words)) for cell in cells)
        options = [option for axis in axes for option in ("--grid", axis)]
        numbers = ",".join(map(str, seeds))
        line = ("sweep", *words, *options, "--seeds", numbers, "--out", str(out))
        self.cells.append(Cell("sweep", line, out / "results.json", f"sweep {kind}", images, starts=len(cells)))
        runs = [Trained(out / cell.name, kind, cell.seed) for cell in cells]
        for cell, run in zip(cells, runs, strict=True):
            row = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in cell.point.items())
            self.rows.setdefault(row, []).append(run)
        return runs

    def draw(self, name: str, *words: str, needs: Sequence[Path]) -> None:
        """Add a picture by a command that takes --out."""
        result = self.out / "figures" / f"{name}.png"
        line = (*words, "--out", str(result))
        self.cells.append(Cell(f"figure {name}", line, result, needs=tuple(needs)))

    def draw_beside(self, name: str, runs: Sequence[Trained], *options: str) -> None:
        """Add a picture: original | masked | each run's composite, of the same images under the same masks."""
        beside = [word for run in runs[1:] for word in ("--beside", str(run.path))]
        words = ("visualize", str(runs[0].path), *beside, "--view", "composite", *options)
        self.draw(name, *words, needs=[run.summary for run in runs])

    def draw_curves(self, runs: Sequence[Trained]) -> None:
        """Add the loss curves of several runs in one figure."""
        words = ("curves", *(str(run.path) for run in runs), "--key", "raw.mse")
        self.draw("loss_curves", *words, needs=[run.summary for run in runs])

    @property
    def drawn(self) -> list[Path]:
        """The pictures of `draw`, in order."""
        return [cell.result for cell in self.cells if cell.name.startswith("figure ")]

    def compare(self) -> None:
        """Add the toolkit's own comparison of all runs, with everything that does not compare marked."""
        out = self.out / "compare"
        words = ("compare", *(str(run.path) for run in self.runs), "--anyway", "--title", self.title, "--out", str(out))
        summaries, scores = (run.summary for run in self.runs), (cell.result for cell in self.cells if cell.kind)
        self.cells.append(Cell("compare", words, out / "compare.json", needs=tuple(summaries), reads=tuple(scores)))

    def add_trials(self) -> None:
        """Add the first cell of each command once more, larger: two sizes tell the start from what an image costs."""
        first: dict[str, Cell] = {}
        for cell in self.cells:
            if cell.words[0] in GROWING:
                first.setdefault(cell.words[0], cell)
        for command, cell in first.items():
            result = cell.result.parent.with_name("trial") / cell.result.name
            words, out = list(cell.words[:-1]), result.parent if command == "pretrain" else result
            for option in GROWING[command]:
                if option in words:
                    place = words.index(option) + 1
                    words[place] = str(TRIAL * int(words[place]))
            if command == "pretrain":
                epochs = TRIAL * load_config(words[1:-1]).training.epochs
                words.insert(-1, f"training.epochs={epochs}")
            larger = replace(cell, name=f"trial: {command}", words=(*words, str(out)), result=result)
            self.cells.append(replace(larger, images=TRIAL * cell.images))

    def _images_of(self, name: str, words: Sequence[str]) -> int:
        try:
            return images_of(tuple(words))
        except UserError as mistake:
            told = {line.partition(": ")[2] for line in self.mistakes}
            self.mistakes += [f"{name}: {line}" for line in str(mistake).splitlines() if line not in told]
            return 0

    @property
    def runs(self) -> list[Trained]:
        return [run for runs in self.rows.values() for run in runs]
