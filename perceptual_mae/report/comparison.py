"""The whole comparison of several runs: checked, grouped, tabled; as JSON too."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perceptual_mae.report.columns import (
    REGIONS,
    Column,
    evaluation_columns,
    representation_columns,
    spectrum_columns,
    summary_columns,
)
from perceptual_mae.report.comparability import TRAINING, Difference, find_differences, refuse
from perceptual_mae.report.cost import Bench, cost_of, read_bench
from perceptual_mae.report.published import FOOTNOTE
from perceptual_mae.report.run_records import RunRecord, read_run_records
from perceptual_mae.report.seed_groups import Group, group_runs
from perceptual_mae.report.tables import Scored, Table, make_table, score_columns
from perceptual_mae.report.transfer_columns import transfer_columns


@dataclass(frozen=True)
class RunComparison:
    """A comparison of runs. `scored` has every column that a table shows, `differences` what does not compare."""

    title: str
    groups: list[Group]
    scored: list[Scored]
    tables: list[Table]
    differences: list[Difference]
    notes: list[str] = field(default_factory=list)

    def find(self, *keys: str) -> Scored | None:
        """Return the first column whose key begins with one of `keys`, in their order, and that somebody has."""
        known = [each for each in self.scored if any(score is not None for score in each.scores)]
        return next((each for key in keys for each in known if each.column.key.startswith(key)), None)

    def together(self, key: str) -> list[Scored]:
        """Return the columns whose keys begin with one file, that of the first `key`, and that somebody has."""
        first = self.find(key)
        if first is None:
            return []
        return [
            each for each in self.scored if each.column.key.startswith(f"{first.column.place}.") and any(each.scores)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "kind": "compare",
            "title": self.title,
            "groups": [self._group(number, group) for number, group in enumerate(self.groups)],
            "differences": [asdict(each) for each in self.differences],
            "tables": [asdict(table) for table in self.tables],
            "notes": self.notes,
        }

    def _group(self, number: int, group: Group) -> dict[str, Any]:
        method = group.method
        published = method.published if method else None
        return {
            "label": group.label,
            "method": method.name if method else None,
            "changed": list(method.changed) if method else None,
            "runs": [{"name": e.name, "path": str(e.path), "seed": e.seed, "step": e.step} for e in group.records],
            "paper": {k: v for k, v in asdict(published).items() if v is not None} if published else None,
            "scores": {
                each.column.key: score.to_json() | {"heading": each.column.heading}
                for each in self.scored
                if (score := each.scores[number]) is not None
            },
        }


def compare(paths: Sequence[Path], *, title: str, bench: Path | None = None, anyway: bool = False) -> RunComparison:
    """Read runs and compare them.

    Raises UserError for what is no run and, unless `anyway`, with a line for each fact in which they do not compare.
    """
    measured = read_bench(bench) if bench is not None else None
    return compare_records(read_run_records(list(paths)), title=title, measured=measured, anyway=anyway)


def compare_records(
    records: Sequence[RunRecord], *, title: str, measured: Bench | None = None, anyway: bool = False
) -> RunComparison:
    """Compare runs that have been read."""
    differences = find_differences(records)
    groups, repeated = group_runs(records)
    if not anyway:
        refuse(differences, repeated)
    places = {each.place for each in differences}
    if TRAINING in places:
        places |= {stem for record in records for stem in record.scores} | {"summary"}
    scored, tables = list[Scored](), list[Table]()
    for name, columns in _score_tables(records).items():
        table_scores = score_columns(columns, groups)
        scored += table_scores
        tables.append(make_table(name, groups, table_scores, places))
    cost, about = cost_of(groups, measured)
    scored += cost
    tables.append(make_table("Cost", groups, cost, set(), about))
    notes = [f"{each}: columns that it touches are marked ≠" for each in map(str, differences)]
    notes += [f"{each}: a row each" for each in repeated] + [note for record in records for note in record.notes]
    notes += _about_groups(groups)
    return RunComparison(title, groups, scored, tables, differences, [*notes, FOOTNOTE])


def _score_tables(records: Sequence[RunRecord]) -> dict[str, list[Column]]:
    tables = {"Held-out scores at the end of training": summary_columns()}
    for region, name in REGIONS.items():
        columns = evaluation_columns(records, region)
        if columns:
            tables[name] = columns
    tables["Representation: top-1, %"] = representation_columns(records)
    spectrum = spectrum_columns(records)
    tables |= {"Representation: effective rank of features": spectrum} if spectrum else {}
    transfer = transfer_columns(records)
    return tables | ({"Dense transfer: a head trained on boxes, masks or pixels": transfer} if transfer else {})


def _about_groups(groups: Sequence[Group]) -> list[str]:
    notes = []
    for group in groups:
        runs = ", ".join(f"{record.name} (seed {record.seed})" for record in group.records)
        changed = group.method.changed if group.method else ()
        changes = f"; other than the shipped method in {', '.join(changed)}" if changed else ""
        notes.append(f"{group.label}: {runs}{changes}")
    return [*notes, "n: runs that differ in their seed alone; mean ± sample deviation over them"]
