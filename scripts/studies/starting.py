"""The command line of a study: the fields of its form are its options; the full form is the default."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from conduct import RECORD, Conductor
from costs import Extrapolation, extrapolate
from findings import Findings
from study import Study

from perceptual_mae.errors import UserError
from perceptual_mae.interrupts import EXIT_CODE

FAILED = 1
Numbers = tuple[float, ...]


class AForm(Protocol):
    """How large a study is: a dataclass whose fields have a text for --help in their metadata."""

    __dataclass_fields__: Any


Form = TypeVar("Form", bound=AForm)
Plan = Callable[[Form, Path, Sequence[str]], Study]


def option(default: Any, help: str) -> Any:
    """Return a field of a form with its text for --help."""
    from dataclasses import field

    return field(default=default, metadata={"help": help})


def start(
    name: str,
    about: str,
    quick: Form,
    full: Form,
    plan: Callable[[Form, Path, Sequence[str]], Study],
    report: Callable[[Study, Form], Findings],
    words: Sequence[str] | None = None,
) -> int:
    """Run a study from its command line; return 0, 1 where a cell failed, or 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog=f"{name}.py", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = read_arguments(parser, name, quick, full, words)
    chosen = {each.name: value for each in fields(full) if (value := getattr(given, each.name)) is not None}
    form, whole = (
        replace(quick if given.quick else full, **chosen),
        replace(full, **{key: value for key, value in chosen.items() if key not in BUDGET}),
    )
    overrides = [*(given.set or []), *([f"data.root={given.root}"] if given.root else [])]
    try:
        study = plan(form, given.out, overrides)
        if study.mistakes:
            raise UserError("\n".join(study.mistakes))
        conductor = Conductor(study, quick=given.quick)
    except UserError as mistake:
        parser.exit(2, "".join(f"{parser.prog}: {line}\n" for line in str(mistake).splitlines()))
    return carry_out(conductor, plan(whole, given.out, overrides), lambda: report(study, form), dry_run=given.dry_run)


BUDGET = ("seeds", "epochs", "images")
"""Fields that make a form large or small; the cost of the full form is told at its own."""


def read_arguments(
    parser: argparse.ArgumentParser, name: str, quick: Form, full: Form, words: Sequence[str] | None
) -> argparse.Namespace:
    """Read the options that all studies share, and those of the form."""
    parser.add_argument("--quick", action="store_true", help="few images and seeds: shows in minutes that all runs")
    parser.add_argument("--out", type=Path, help=f"folder of the study; none: runs/studies/{name}, or {name}-quick")
    parser.add_argument("--root", help="data.root of every run: where the images lie")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a key of every run; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="list the commands and what they would take, and stop")
    for each in fields(full):
        small, large = (_told(getattr(form, each.name)) for form in (quick, full))
        default = large if small == large else f"{large}; quick: {small}"
        parser.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=_reader(getattr(full, each.name)),
            help=f"{each.metadata['help']} ({default})".replace("%", "%%"),
        )
    given = parser.parse_args(words)
    given.out = given.out or Path("runs/studies") / (f"{name}-quick" if given.quick else name)
    return given


def carry_out(conductor: Conductor, whole: Study, report: Callable[[], Findings], *, dry_run: bool) -> int:
    """Run what is not done, write tables and figures, and say where they are."""
    study, tell = conductor.study, conductor.console.print
    if dry_run:
        print("\n".join(conductor.list_cells()))
        tell(f"{len(study.cells)} cells, {len(conductor.todo)} of them to go")
        for line in _cost_of(conductor, whole):
            tell(line)
        return 0
    if not conductor.run():
        return EXIT_CODE
    findings = report()
    findings.write(
        quick=conductor.quick,
        failed=conductor.failed,
        spent=sum(record.get("seconds", 0.0) for record in conductor.records.values()),
        costs=conductor.costs,
        full=_extrapolated(conductor, whole),
    )
    print((study.out / "results.md").read_text())
    tell(f"written to {study.out}: results.md, results.json, figures/, commands.sh (every cell, to repeat by hand)")
    if conductor.failed:
        tell(f"not finished: {', '.join(conductor.failed)} (why: {study.out / RECORD}); the same command tries again")
        return FAILED
    return 0


def _extrapolated(conductor: Conductor, whole: Study) -> Extrapolation | None:
    return extrapolate(whole.cells, conductor.costs) if conductor.costs is not None else None


def _cost_of(conductor: Conductor, whole: Study) -> list[str]:
    full = _extrapolated(conductor, whole)
    return [] if full is None else [f"the full form: {full.hours:.1f} hours, as far as what was run tells"]


def _reader(default: Any) -> Callable[[str], Any]:
    """Return what reads an option of the default's type; lists are given as 0,1,2."""
    if isinstance(default, tuple):
        kind = type(default[0])
        return lambda text: tuple(kind(word) for word in text.split(",") if word)
    reader: Callable[[str], Any] = type(default)
    return reader


def _told(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"
