"""The tables of the comparison as plain cells, in the form of the paper's, with its rows next to ours."""

from collections.abc import Sequence
from dataclasses import dataclass

from perceptual_mae.report.columns import Column
from perceptual_mae.report.published import Published
from perceptual_mae.report.run_records import RunRecord
from perceptual_mae.report.seed_groups import Group, Score, score

MISSING = "-"
DIFFERS = "≠"
"""Before the heading of a column whose runs do not compare."""
BORROWED, NOISE = "*", "†"


@dataclass(frozen=True)
class Row:
    """A row's label and cells; `is_paper`: the numbers are the paper's."""

    label: str
    cells: list[str]
    is_paper: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be printed; notes stand below it, one a line."""

    title: str
    header: list[str]
    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True)
class Scored:
    """A column with its score for each group."""

    column: Column
    scores: list[Score | None]


def score_columns(columns: Sequence[Column], groups: Sequence[Group]) -> list[Scored]:
    """Return the columns with their scores."""
    return [
        Scored(column, [score({record.name: column.read(record) for record in group.records}) for group in groups])
        for column in columns
    ]


def make_table(
    title: str,
    groups: Sequence[Group],
    scored: Sequence[Scored],
    differing: set[str],
    notes: Sequence[str] = (),
    *,
    paper: bool = True,
) -> Table:
    """Return a table with a row for each group, and the paper's row below it where it has one with such numbers.

    `differing` are the places whose scores do not compare; their columns are marked.
    """
    rows = []
    for number, group in enumerate(groups):
        n = len(group.records)
        cells = [_cell(each.column, each.scores[number], n, group) for each in scored]
        rows.append(Row(group.label, [str(n), *cells]))
        published = group.method.published if paper and group.method else None
        if published is not None and any(_published_cell(each.column, published) != MISSING for each in scored):
            cells = [_published_cell(each.column, published) for each in scored]
            rows.append(Row(f"paper: {group.method.title if group.method else ''}", ["", *cells], is_paper=True))
    header = [f"{DIFFERS} " * (each.column.place in differing) + each.column.heading for each in scored]
    return Table(title, ["", "n", *header], rows, [*notes, *_marks(rows), *missing(groups, scored)])


def missing(groups: Sequence[Group], scored: Sequence[Scored]) -> list[str]:
    """Say why scores are not there: what a file says of them, or which command makes them (for the first such run)."""
    reasons, commands = dict[str, None](), dict[str, list[str]]()
    for each in scored:
        for record in [record for group in groups for record in group.records if each.column.read(record) is None]:
            reason = _reason(each.column, record)
            if reason is not None:
                reasons[f"no {each.column.heading}: {reason}"] = None
            elif each.column.command and str(record.path) not in commands.setdefault(each.column.command, []):
                commands[each.column.command].append(str(record.path))
    commands_to_run = [
        f"not there yet: `{command} {runs[0]}`" + (f", and so for {len(runs) - 1} more" if len(runs) > 1 else "")
        for command, runs in commands.items()
    ]
    return [*reasons, *commands_to_run]


def _reason(column: Column, record: RunRecord) -> str | None:
    """Return what a file of scores says of the one it lacks, or None where it says nothing, or is not there."""
    unavailable = record.scores.get(column.place, {}).get("unavailable", {})
    if not column.metric:
        return None
    return next((str(why) for name, why in unavailable.items() if name.partition("[")[0] == column.metric), None)


def _cell(column: Column, score: Score | None, n: int, group: Group) -> str:
    if score is None:
        return MISSING
    return score.format(column.spec) + (f" (n = {score.n})" if score.n < n else "") + mark(column, group)


def mark(column: Column, group: Group) -> str:
    """Mark scores that borrow the originals' statistics, and whole outputs of runs that never learnt visible pixels."""
    report = group.first.scores.get(column.place, {})
    region = column.key.removeprefix(f"{column.place}.").partition(".")[0]
    is_noise = region == "raw" and report.get("learns_visible_pixels") is False
    source = group.first.summary or {} if column.place == "summary" else report
    return (f" {BORROWED}" if source.get("uses_target_statistics") else "") + (f" {NOISE}" if is_noise else "")


def _marks(rows: Sequence[Row]) -> list[str]:
    cells = [cell for row in rows for cell in row.cells]
    notes = []
    if any(cell.endswith(BORROWED) or f" {BORROWED} " in cell for cell in cells):
        notes.append(f"{BORROWED} norm_pix: patches are un-normalised with the true patch's mean and deviation")
    if any(cell.endswith(NOISE) for cell in cells):
        notes.append(f"{NOISE} trained on hidden patches alone: what it puts where the image is visible means nothing")
    return notes


def _published_cell(column: Column, published: Published) -> str:
    value = getattr(published, column.published, None) if column.published else None
    return MISSING if value is None else format(value, column.published_spec)
