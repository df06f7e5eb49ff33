"""The command line of a study: the fields of its form are its options; the full form is the default."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from conduct import RECORD, Conductor
from costs import CLOCK, CPU, HOUR, Extrapolation, extrapolate
from findings import Cost, Findings
from perceptual_mae.errors import UserError
from perceptual_mae.run.signals import EXIT_CODE
from study import Study

FAILED = 1
Form = TypeVar("Form")
"""How large a study is: a frozen dataclass whose fields are made by `option`."""


def option(default: Any, told: str) -> Any:
    """Return a field of a form with its text for --help."""
    return field(default=default, metadata={"help": told})


def start(
    name: str,
    about: str,
    quick: Form,
    full: Form,
    plan: Callable[[Form, Path, Sequence[str]], Study],
    report: Callable[[Study, Form], Findings],
    words: Sequence[str] | None = None,
) -> int:
    """Run a study from its command line; return 0, 1 where a cell failed, 2 for a mistake, or 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog=f"{name}.py", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = read_arguments(parser, name, quick, full, words)
    said = {each: value for each in names_of(full) if (value := getattr(given, each)) is not None}
    form = _with(quick if given.quick else full, said)
    overrides = [*(given.set or []), *([f"data.root={given.root}"] if given.root else [])]
    try:
        refuse_empty(form)
        study = plan(form, given.out, overrides)
        if study.mistakes:
            raise UserError("\n".join(study.mistakes))
        if given.quick:
            study.add_trials()
        if given.jobs < 1:
            raise UserError(f"--jobs: {given.jobs} cells at once are none; give 1 or more")
        conductor = Conductor(study, quick=given.quick, jobs=given.jobs)
    except UserError as mistake:
        for line in str(mistake).splitlines():
            print(f"{parser.prog}: {line}", file=sys.stderr)
        return 2
    # What --quick makes smaller is taken as it is in the full form; the rest as it was asked for.
    scaled = {each for each in names_of(full) if getattr(quick, each) != getattr(full, each)}
    large = _with(full, {each: said[each] for each in said.keys() - scaled})
    try:
        entire = plan(large, given.out, overrides) if given.quick else study
    except UserError:  # more images than are here
        entire = None
    return carry_out(conductor, entire, lambda: report(study, form), dry_run=given.dry_run)


def refuse_empty(form: Any) -> None:
    """Raise UserError for a list of a form that names nothing, or one thing twice."""
    for each in names_of(form):
        values = getattr(form, each)
        flag = f"--{each.replace('_', '-')}"
        if values == ():
            raise UserError(f"{flag}: names nothing; give one or more, separated by commas")
        if isinstance(values, tuple) and len(set(values)) < len(values):
            raise UserError(f"{flag}: names one thing twice ({_told(values)})")


def names_of(form: Any) -> list[str]:
    return [each.name for each in fields(form)]


def read_arguments(
    parser: argparse.ArgumentParser, name: str, quick: Any, full: Any, words: Sequence[str] | None
) -> argparse.Namespace:
    """Read the options that all studies share, and those of the form."""
    parser.add_argument("--quick", action="store_true", help="few images and seeds: shows in minutes that all runs")
    parser.add_argument("--out", type=Path, help=f"folder of the study; none: runs/studies/{name}, or {name}-quick")
    parser.add_argument("--root", help="data.root of every run: where the images lie")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a key of every run; may be repeated")
    parser.add_argument(
        "--jobs", type=int, default=1, help="cells at the same time, each a process: a core for each (1)"
    )
    parser.add_argument(
        *("--dry-run", "--list"), action="store_true", help="list the commands and what they would take, and stop"
    )
    for each in fields(full):
        small, large = (_told(getattr(form, each.name)) for form in (quick, full))
        told = each.metadata["help"] + f" ({large if small == large else f'{large}; quick: {small}'})"
        flag, reader = f"--{each.name.replace('_', '-')}", _reader(getattr(full, each.name))
        parser.add_argument(flag, type=reader, metavar="...", help=told.replace("%", "%%"))
    given = parser.parse_args(words)
    given.out = given.out or Path("runs/studies") / (f"{name}-quick" if given.quick else name)
    return given


def carry_out(conductor: Conductor, entire: Study | None, report: Callable[[], Findings], *, dry_run: bool) -> int:
    """Run what is not done, write tables and figures, and say where they are."""
    study, tell = conductor.study, conductor.console.print
    if dry_run:
        print("\n".join(conductor.list_cells()))
        tell(f"{len(study.cells)} cells, {len(conductor.todo)} of them to go{_hours(conductor, entire)}")
        return 0
    if not conductor.run():
        return EXIT_CODE
    findings = report()
    spent = {
        counted: sum(record.get(counted, 0.0) for record in conductor.records.values()) / HOUR
        for counted in (CLOCK, CPU)
    }
    full = {counted: _extrapolated(conductor, entire, counted) for counted in (CLOCK, CPU)}
    cost = Cost(spent[CLOCK], spent[CPU], full[CLOCK], full[CPU])
    findings.write(quick=conductor.quick, failed=conductor.failed, cost=cost)
    print((study.out / "results.md").read_text())
    tell(f"written to {study.out}: results.md, results.json, figures/, commands.sh (each cell, to repeat it by hand)")
    if conductor.failed:
        tell(f"not finished: {', '.join(conductor.failed)} (why: {study.out / RECORD}); the same command tries again")
        return FAILED
    if conductor.quick:
        tell(f"next: the same command without --quick{_hours(conductor, entire)}")
    return 0


def _extrapolated(conductor: Conductor, entire: Study | None, counted: str) -> Extrapolation | None:
    costs = conductor.costs(counted)
    return extrapolate(entire.cells, costs) if costs is not None and entire is not None else None


def _hours(conductor: Conductor, entire: Study | None) -> str:
    """Say what the full form takes, where anything tells, or by the speed that the study assumes."""
    full = _extrapolated(conductor, entire, CPU)
    if full is not None:
        return f"; the full form takes {full.hours:.1f} hours of CPU time, as far as cells tell"
    if entire is None or entire.assumed_speed is None:
        return ""
    trained, scored = assumed_hours(entire)
    return (
        f"; nothing was run yet: at an assumed {entire.assumed_speed:g} images a second the full form takes "
        f"{trained:.1f} hours to train, and at most {scored:.1f} to score"
    )


def assumed_hours(study: Study) -> tuple[float, float]:
    """Return the hours of a study's trainings, and of its scores, at the speed that it assumes for a training."""
    trained = sum(cell.images for cell in study.cells if cell.words[0] in ("pretrain", "sweep", "sharpen"))
    images = sum(cell.images for cell in study.cells)
    speed = (study.assumed_speed or 1) * HOUR
    return trained / speed, (images - trained) / speed


def _with(form: Form, values: dict[str, Any]) -> Form:
    return replace(form, **values)  # type: ignore[type-var]


def _reader(default: Any) -> Callable[[str], Any]:
    """Return what reads an option of the default's type; several values are given as 0,1,2."""
    if not isinstance(default, tuple):
        kind: Callable[[str], Any] = type(default)
        return kind
    of_one = type(default[0])

    def several(text: str) -> tuple[Any, ...]:
        return tuple(of_one(word) for word in text.split(",") if word)

    return several


def _told(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"
