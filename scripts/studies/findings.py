"""What a study found: its runs' files read into tables, pictures beside them, what it cost; as Markdown and JSON."""

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from costs import Extrapolation
from perceptual_mae.files import write_atomically, write_json
from perceptual_mae.report.columns import Column
from perceptual_mae.report.figures import draw_scores
from perceptual_mae.report.formats import to_markdown
from perceptual_mae.report.run_records import RunRecord, read_run_record
from perceptual_mae.report.seed_groups import Group
from perceptual_mae.report.tables import MISSING, Row, Scored, Table, make_table, score_columns
from perceptual_mae.sweep.grid import Axis
from perceptual_mae.sweep.results import Point, draw_curves, lookup
from study import Study, Trained

SUMMARY = "summary"


def column(
    heading: str,
    stem: str,
    place: str,
    *,
    command: str = "pmae evaluate",
    spec: str = ".2f",
    scale: float = 1,
    metric: str = "",
) -> Column:
    """Return a column that reads one number: `place` is its dotted name below "scores" of evaluation/STEM.json.

    The stem `summary` reads summary.json. `metric` is its name in the list of what a file says it could not have.
    """

    def read(entry: RunRecord) -> float | None:
        scores = (entry.summary or {}) if stem == SUMMARY else entry.scores.get(stem, {}).get("scores", {})
        found = lookup(scores, place)
        return None if found is None else scale * found

    return Column(f"{stem}.{place}", heading, read, stem, command, spec, metric=metric)


def per_cent(heading: str, stem: str, place: str, command: str) -> Column:
    """Return a column of accuracies, in per cent."""
    return column(heading, stem, place, command=command, scale=100)


def read_rows(rows: dict[str, list[Trained]]) -> list[Group]:
    """Return the rows whose runs are finished, under their names."""
    groups = []
    for label, runs in rows.items():
        entries = [read_run_record(run.path, run.name) for run in runs if run.summary.exists()]
        if entries:
            groups.append(Group(entries, None, label))
    return groups


def pair_by_seed(base: Group, others: Sequence[Group], columns: Sequence[Column]) -> Table:
    """Return each score less the base's over the seeds that both have, and what Student's interval of 95 % says of it.

    Two runs of one seed see the same images in the same order.
    """
    rows = [
        Row(group.label, [str(len(_pairs(base, group, columns[0]))), *(_difference(base, group, c) for c in columns)])
        for group in others
    ]
    title = f"Less {base.label}, paired by seed"
    notes = ["~: the interval of 95 % (Student, over seeds) holds 0, so no difference is shown; one seed shows none"]
    return Table(title, ["", "n", *(each.heading for each in columns)], rows, notes)


def in_words(base: Group, other: Group, columns: Sequence[Column]) -> list[str]:
    """Return a sentence for each score: how the other differs, in how many seeds, and whether that shows anything."""
    told = []
    for each in columns:
        values = [high - low for low, high in _pairs(base, other, each)]
        if values:
            ups, found = sum(value > 0 for value in values), _difference(base, other, each)
            judged = "no difference is shown" if found.endswith("~") else "a difference is shown"
            told.append(
                f"{each.heading}: {other.label} less {base.label} {found.removesuffix(' ~')}, higher in {ups} of "
                f"{len(values)} seeds: {judged}"
            )
    return told


def _pairs(base: Group, other: Group, column: Column) -> list[tuple[float, float]]:
    """Return the values of base and other under the seeds that both have."""
    low, high = ({entry.seed: column.read(entry) for entry in group.records} for group in (base, other))
    return [(a, b) for seed, a in low.items() if a is not None and (b := high.get(seed)) is not None]


def _difference(base: Group, other: Group, column: Column) -> str:
    values = [high - low for low, high in _pairs(base, other, column)]
    if not values:
        return MISSING
    mean, told = statistics.fmean(values), f"+{column.spec}"
    if len(values) == 1:
        return f"{format(mean, told)} ~"
    from scipy.stats import t  # a second to import

    deviation = statistics.stdev(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return f"{format(mean, told)} ± {format(deviation, column.spec)}" + (" ~" if abs(mean) <= reach else "")


@dataclass(frozen=True)
class Cost:
    """Hours that the cells took, and what the full form would (None where nothing tells)."""

    hours: float
    cpu_hours: float
    full: Extrapolation | None = None
    full_cpu: Extrapolation | None = None


@dataclass
class Findings:
    """The tables, pictures and notes of a study."""

    study: Study
    groups: list[Group]
    tables: list[Table] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def tabulate(
        self, title: str, columns: Sequence[Column], groups: Sequence[Group] | None = None, *, notes: Sequence[str] = ()
    ) -> None:
        """Add a table with a row for each group (None: all of them)."""
        chosen = self.groups if groups is None else groups
        self.tables.append(make_table(title, chosen, score_columns(columns, chosen), set(), notes, paper=False))

    def draw_scores(self, columns: Sequence[Column]) -> None:
        """Add a figure with a panel for each score that any row has; results.json has them, too."""
        self.scored = score_columns(columns, self.groups)
        known = [each for each in self.scored if any(found is not None for found in each.scores)]
        if known:
            self.figures.append(self.study.out / "figures" / "scores.png")
            draw_scores(self.groups, known, self.figures[-1], self.study.title)

    def draw_curve(
        self, name: str, axes: Sequence[Axis], places: Mapping[str, dict[str, str]], headings: Sequence[str]
    ) -> None:
        """Add a figure with a panel for each heading over the first axis; `places` tells where rows stand on the axes.

        The scores are those of `draw_scores`.
        """
        scores = {each.column.heading: each.scores for each in self.scored}
        points = [
            Point(places[group.label], {heading: scores[heading][number] for heading in headings}, [])
            for number, group in enumerate(self.groups)
            if group.label in places
        ]
        if points:
            self.figures.append(self.study.out / "figures" / f"{name}.png")
            draw_curves(points, axes, headings, self.figures[-1])

    def find(self, label: str) -> Group | None:
        return next((group for group in self.groups if group.label == label), None)

    def write(self, *, quick: bool, failed: Sequence[str], cost: Cost) -> None:
        """Write results.md and results.json."""
        notes = [*self.notes, *self._about_runs(), *(f"{name}: not finished, see study.json" for name in failed)]
        notes.append("n: runs that differ in their seed alone; mean ± sample deviation over them")
        parts = [to_markdown(self.study.title, self.tables, notes)]
        drawn = [path for path in self.figures if path.exists()]
        if drawn:
            lines = [f"![{path.stem}]({path.relative_to(self.study.out).as_posix()})" for path in drawn]
            parts.append("## Figures\n\n" + "\n\n".join(lines) + "\n")
        parts.append("## Cost\n\n" + "\n".join(f"- {line}" for line in tell_cost(cost)) + "\n")
        if quick:
            parts.append("This is the quick form: it shows that everything runs, and its numbers are no findings.\n")
        write_atomically(self.study.out / "results.md", "\n".join(parts))
        told = {
            "kind": "study",
            "study": self.study.name,
            "quick": quick,
            "command": shlex.join(sys.argv),
            "rows": [self._row(number, group) for number, group in enumerate(self.groups)],
            "tables": [asdict(table) for table in self.tables],
            "figures": [str(path.relative_to(self.study.out)) for path in drawn],
            "notes": notes,
            "failed": list(failed),
            "cost": asdict(cost) | {"told": tell_cost(cost)},
        }
        write_json(self.study.out / "results.json", told)

    def _row(self, number: int, group: Group) -> dict[str, Any]:
        found = {each.column.key: each for each in self.scored if each.scores[number] is not None}
        return {
            "label": group.label,
            "runs": [{"name": entry.name, "path": str(entry.path), "seed": entry.seed} for entry in group.records],
            "scores": {
                key: asdict(score) | {"n": score.n, "heading": each.column.heading}
                for key, each in found.items()
                if (score := each.scores[number]) is not None
            },
        }

    def _about_runs(self) -> list[str]:
        entries = [entry for group in self.groups for entry in group.records]
        machines = {f"{e.environment.get('device')}, {e.environment.get('cpu_cores')} cores" for e in entries}
        told = [f"made by `{shlex.join(['python', *sys.argv])}` on {'; '.join(sorted(machines))}"] if entries else []
        return [*told, *dict.fromkeys(note for entry in entries for note in entry.notes)]


def tell_cost(cost: Cost) -> list[str]:
    """Return what was spent and what the full form would take, in words."""
    told = [f"spent so far: {cost.hours:.2f} hours by the clock, {cost.cpu_hours:.2f} of CPU time"]
    if cost.full is None or cost.full_cpu is None:
        return told
    full, cpu = cost.full, cost.full_cpu
    told.append(
        f"the full form, {full.cells} cells, extrapolated from these: {cpu.hours:.1f} hours of CPU time; "
        f"{full.hours:.1f} by the clock of this machine, whatever else it did"
    )
    told += [f"taken from other cells of the command: {', '.join(full.guessed)}"] if full.guessed else []
    told += [f"not counted, nothing like it was run: {', '.join(full.unknown)}"] if full.unknown else []
    return told
