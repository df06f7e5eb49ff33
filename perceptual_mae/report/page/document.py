"""The page: what run folders hold as JSON, put into the template together with its styles and scripts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.decoding import UnreadableImageError
from perceptual_mae.errors import UserError
from perceptual_mae.pages.html_page import html_page
from perceptual_mae.report.comparison import RunComparison, compare_records
from perceptual_mae.report.page import description, pictures
from perceptual_mae.report.page.metrics_log import Alarm, MetricsLog, read_alarms, read_logs, thin
from perceptual_mae.report.run_records import RunRecord, read_run_record
from perceptual_mae.report.tables import Row, Table
from perceptual_mae.run.folder import distinct_names, read_config
from perceptual_mae.run.run import read_object
from perceptual_mae.training.metrics import METRICS_KEYS

MOST_POINTS, FEWEST_POINTS = 2_000, 50
"""Of one curve."""
ALL_POINTS = 90_000
"""Of all curves together: some 1.3 MB."""
MOST_KEYS = 1_000
"""With a curve each; no run of this package logs a tenth of them."""
DIGITS = 6
"""Of a number on the page: those of float32."""
PICTURES = 1_400_000
"""Characters of all pictures together."""
SCRIPTS = ("uPlot.iife.min.js", "elements.js", "charts.js", "ribbon.js", "pictures.js", "tables.js", "page.js")
STYLES = ("uPlot.min.css", "page.css")
NO_COMPARISON = "no table of scores"
COST = "Cost"
SPEED = "images_per_second"


@dataclass(frozen=True)
class ReportedRun:
    """A run folder as the page shows it. `record`: what `pmae compare` reads of it, or why it reads nothing."""

    name: str
    path: Path
    config: RunConfig
    environment: Mapping[str, Any]
    log: MetricsLog
    alarms: list[Alarm]
    record: RunRecord | str

    @property
    def images_seen(self) -> int:
        return max(self.log.images_seen, self.record.images_seen if isinstance(self.record, RunRecord) else 0)

    @property
    def steps(self) -> int:
        return self.images_seen // self.config.training.batch_size

    @property
    def is_finished(self) -> bool:
        return isinstance(self.record, RunRecord) and self.record.summary is not None


def report(paths: Sequence[Path], *, title: str = "") -> dict[str, Any]:
    """Return everything the page shows of runs, as plain values.

    Raises UserError for what is no run folder, for one that is named twice, and for a damaged line of metrics.jsonl.
    What else is damaged is left out, with a sentence in `notes`.
    """
    runs = read_runs(paths)
    budget = pictures.Budget(PICTURES)
    comparison = _compare(runs, budget.notes)
    content = {
        "title": title or ", ".join(run.name for run in runs),
        "runs": [_run(run) for run in runs],
        "facts": description.rows_of(
            [
                description.properties_of(run.config, run.environment, run.steps, run.images_seen, run.is_finished)
                for run in runs
            ],
        ),
        "curves": curves(runs, budget.notes),
        "meanings": METRICS_KEYS,
        "phases": [run.log.phases for run in runs],
        "alarms": [{"run": number, **asdict(alarm)} for number, run in enumerate(runs) for alarm in run.alarms],
        "ranked": _ranked(runs, budget),
        "attention": _attention(runs, budget),
        "samples": _samples(runs, budget),
        "tables": _tables(runs, comparison),
        "cost": [asdict(table) for table in comparison.tables if table.title == COST] if comparison else [],
        "table_notes": comparison.notes if comparison else [],
        "configuration": description.rows_of([description.configuration_of(run.config) for run in runs]),
    }
    return content | {"notes": budget.notes}


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Read run folders; see `report` for what it raises."""
    for path in paths:
        if [other.resolve() for other in paths].count(path.resolve()) > 1:
            raise UserError(f"{path}: is named twice; name each run once")
        if path.parent.name == "checkpoints":
            raise UserError(f"{path}: is a checkpoint; what is reported is in its run folder, {path.parent.parent}")
    configs = [read_config(path) for path in paths]
    logs = read_logs(paths, [config.training.batch_size for config in configs])
    runs = []
    for name, path, config, log in zip(distinct_names(paths), paths, configs, logs, strict=True):
        record, environment = _record(path, name, log)
        known = max(log.images_seen, record.images_seen if isinstance(record, RunRecord) else 0)
        alarms = read_alarms(path, config.training.batch_size, known)
        runs.append(ReportedRun(name, path, config, environment, log, alarms, record))
    return runs


def curves(runs: Sequence[ReportedRun], notes: list[str]) -> dict[str, dict[int, list[list[float]]]]:
    """Return by dotted key and number of the run the images seen and the values, thinned."""
    keys = list(dict.fromkeys(key for run in runs for key in run.log.columns))
    if len(keys) > MOST_KEYS:
        notes.append(f"{MOST_KEYS} of {len(keys)} keys of metrics.jsonl are drawn")
    shown = set(keys[:MOST_KEYS])
    count = sum(len(shown & run.log.columns.keys()) for run in runs)
    most = max(FEWEST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, count)))
    drawn: dict[str, dict[int, list[list[float]]]] = {}
    for number, run in enumerate(runs):
        for key, (images_seen, values) in run.log.columns.items():
            if key not in shown:
                continue
            at, kept = thin(images_seen, values, most)
            rounded = [float(f"{value:.{DIGITS}g}") for value in kept.tolist()]
            drawn.setdefault(key, {})[number] = [list(map(int, at.tolist())), rounded]
    return drawn


def page(content: Mapping[str, Any], *, live: bool = False) -> str:
    """Return the HTML of a report. It asks for nothing; with `live` it asks its own server for newer contents."""
    assets = files("perceptual_mae.report.page") / "assets"
    licence = (assets / "uPlot.LICENSE").read_text(encoding="utf-8").strip()
    return html_page(
        "perceptual-mae report",
        '<div id="report"></div>',
        assets,
        scripts=SCRIPTS,
        styles=STYLES,
        content={**content, "live": live},
        live=live,
        notice=f"The curves are drawn by uPlot 1.6.32:\n\n{licence}",
    )


def _record(path: Path, name: str, log: MetricsLog) -> tuple[RunRecord | str, dict[str, Any]]:
    """Return what `pmae compare` reads of a run, or why it reads nothing, and the run's environment."""
    environment: dict[str, Any] = {}
    try:
        environment = read_object(path / "environment.json") or {}
        speeds = log.columns[SPEED][1].tolist() if SPEED in log.columns else []
        return read_run_record(path, name, speeds), environment
    except UserError as mistake:
        return str(mistake), environment
    except (OSError, UnicodeDecodeError, LookupError, TypeError, AttributeError, RecursionError) as failure:
        return f"{path}: its records are of another form ({failure!r})", environment


def _run(run: ReportedRun) -> dict[str, Any]:
    words = description.sentence(run.name, run.config, run.images_seen, run.steps, run.is_finished)
    return {"name": run.name, "words": words, "code": description.loading_code(run.path), "seen": run.images_seen}


def _compare(runs: Sequence[ReportedRun], notes: list[str]) -> RunComparison | None:
    """Return the comparison of the runs that can be read for it, and note why of the others."""
    notes += [f"{NO_COMPARISON} of {run.name}: {run.record}" for run in runs if isinstance(run.record, str)]
    records = [run.record for run in runs if isinstance(run.record, RunRecord)]
    try:
        return compare_records(records, title="", anyway=True) if records else None
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as failure:
        notes.append(f"{NO_COMPARISON}: {failure}")
        return None


def _tables(runs: Sequence[ReportedRun], comparison: RunComparison | None) -> list[dict[str, Any]]:
    """Return the tables of the comparison that hold a number, and the fillings that learn nothing."""
    if comparison is None:
        return []
    held = {each.title for each in comparison.tables if any(map(_has_number, each.rows))}
    tables = [table for table in comparison.tables if table.title in held and table.title != COST]
    baselines = [table for run in runs if (table := _baselines(run)) is not None]
    return [asdict(table) for table in [*tables[:1], *baselines, *tables[1:]]]


def _has_number(row: Row) -> bool:
    return not row.is_paper and any(cell[:1].isdigit() or cell[1:2].isdigit() for cell in row.cells[1:])


def _baselines(run: ReportedRun) -> Table | None:
    """Return the run's held-out scores next to those of fillings that learn nothing, of summary.json."""
    summary = run.record.summary if isinstance(run.record, RunRecord) else None
    baselines = (summary or {}).get("baselines")
    if not isinstance(baselines, dict) or not baselines:
        return None
    names = {"psnr": ("PSNR, dB", ".2f"), "psnr_masked": ("hidden PSNR, dB", ".2f"), "ssim": ("SSIM", ".3f")}
    rows = [
        Row(label, [_cell(scores.get(name), spec) for name, (_, spec) in names.items()])
        for label, scores in {run.name: summary, **baselines}.items()
        if isinstance(scores, dict)
    ]
    rows = [Row(row.label.replace("_", " ") if row.label in baselines else row.label, row.cells) for row in rows]
    title = f"{run.name} and fillings that learn nothing"
    return Table(title, ["", *(heading for heading, _ in names.values())], rows, [])


def _cell(value: Any, spec: str) -> str:
    return format(value, spec) if type(value) in (int, float) else description.ABSENT


def _samples(runs: Sequence[ReportedRun], budget: pictures.Budget) -> dict[str, Any]:
    """Return the sheets of samples: images and masks by scene, and by run and epoch what was painted."""
    by_run = [pictures.read_snapshots(run.path, run.config, run.log.epochs, budget.notes) for run in runs]
    scenes = {
        samples.scene: pictures.geometry_of(run.config, samples)
        for run, each in zip(runs, by_run, strict=True)
        for samples in each.values()
    }
    if not budget.take([scene["original"] for scene in scenes.values()]):
        budget.notes.append("the samples are left out: their originals alone are too large for the page")
        return {}
    sizes = [sum(len(samples.raw) for samples in each.values()) for each in by_run]
    share = min(1.0, budget.left / max(1, sum(sizes)))
    order, shown = list(scenes), []
    for number, (run, each) in enumerate(zip(runs, by_run, strict=True)):
        kept = pictures.spread(list(each.items()), max(2, math.floor(share * len(each))))
        if len(kept) < len(each):
            budget.notes.append(f"{run.name}: {len(kept)} of {len(each)} sheets of samples fit on the page")
        for epoch, samples in kept:
            if budget.take([samples.raw]):
                at = {"run": number, "scene": order.index(samples.scene), "epoch": epoch, "seen": run.log.epochs[epoch]}
                shown.append(at | {"raw": samples.raw})
    return {"scenes": list(scenes.values()), "snapshots": shown} if shown else {}


def _ranked(runs: Sequence[ReportedRun], budget: pictures.Budget) -> list[dict[str, Any]]:
    """Return the best and worst images of each run's first report that has pictures."""
    ranked = []
    for number, run in enumerate(runs):
        scores = run.record.scores if isinstance(run.record, RunRecord) else {}
        stem = next((stem for stem, report in scores.items() if report.get("pictures")), None)
        if stem is None:
            continue
        try:
            each = pictures.read_ranked(run.path, run.config, scores[stem], stem)
        except (UnreadableImageError, OSError, ValueError, AttributeError) as failure:
            budget.notes.append(f"{run.name}: no best and worst images ({failure})")
            continue
        if budget.take([each["original"], each["composite"]]):
            ranked.append({"run": number, "report": stem, **each})
        else:
            budget.notes.append(f"{run.name}: its best and worst images are too large for the page")
    return ranked


def _attention(runs: Sequence[ReportedRun], budget: pictures.Budget) -> list[dict[str, Any]]:
    shown = []
    for number, run in enumerate(runs):
        maps = pictures.read_attention(run.path, run.config, budget.notes)
        if maps is not None and budget.take(list(maps["views"].values())):
            if "patches" in maps and not budget.take([maps["patches"]]):
                del maps["patches"], maps["mapped"]
                budget.notes.append(f"{run.name}: what each patch attends to is too large for the page")
            shown.append({"run": number, **maps})
        elif maps is not None:
            budget.notes.append(f"{run.name}: its attention maps are too large for the page")
    return shown
