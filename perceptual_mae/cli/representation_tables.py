"""Scores of a representation as Markdown tables: they read well on a terminal and paste into a page."""

from collections.abc import Callable, Mapping
from typing import Any

from perceptual_mae.cli.output import percent
from perceptual_mae.report.markdown_table import markdown_table

COLUMNS = {"class": "class token", "mean": "mean pool", "pixels": "pixels"}


def probe_table(report: Mapping[str, Any]) -> str:
    """Return top-1 accuracies in %, mean and standard deviation over seeds; a layer map has a row for each block."""
    if report["protocol"] == "layers":
        return _layer_table(report["scores"]["encoder"])
    if report["protocol"] == "kth":
        return _two_readings(report)
    names = _names(report["scores"])
    rows = [
        [subject, *(_cell(by_pooling[name]) if name in by_pooling else "" for name in names)]
        for subject, by_pooling in report["scores"].items()
    ]
    return markdown_table(["top-1, %", *(COLUMNS[name] for name in names)], rows)


def knn_table(report: Mapping[str, Any]) -> str:
    """Return top-1 accuracies in %, a column for each number of neighbours."""
    rows, counts = [], list[str]()
    for subject, by_pooling in report["scores"].items():
        for name, by_count in by_pooling.items():
            counts = list(by_count)
            label = subject if name == "pixels" else f"{subject}, {COLUMNS[name]}"
            rows.append([label, *map(percent, by_count.values())])
    return markdown_table(["top-1, %", *(f"k = {count}" for count in counts)], rows)


def with_spectrum(table: Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    """Return a table of accuracies followed by RankMe and alpha-ReQ of the training features, where a report has them.

    The protocols that compute features anew in every epoch have none.
    """

    def both(report: Mapping[str, Any]) -> str:
        rows = [
            [subject if name == "pixels" else f"{subject}, {_pooling(name)}", *map(_number, spectrum.values())]
            for subject, by_pooling in report.get("spectrum", {}).items()
            for name, spectrum in by_pooling.items()
        ]
        spectra = markdown_table(["training features", "RankMe", "alpha-ReQ"], rows) if rows else ""
        return "\n\n".join(filter(None, (table(report), spectra)))

    return both


def finetune_table(report: Mapping[str, Any]) -> str:
    """Return top-1 (and top-5) accuracies in % and the last epoch's training loss, a row a seed, then the mean."""
    columns = {"top1": "top-1, %", "top5": "top-5, %"}
    shown = {key: heading for key, heading in columns.items() if key in report["scores"]}
    losses = [curve[-1]["train_loss"] for curve in report["curves"].values()]
    rows = [
        [f"seed {seed}", *(percent(report["scores"][key]["by_seed"][place]) for key in shown), f"{loss:.3f}"]
        for place, (seed, loss) in enumerate(zip(report["seeds"], losses, strict=True))
    ]
    if len(rows) > 1:
        mean = sum(losses) / len(losses)
        rows.append(["mean", *(_cell(report["scores"][key]) for key in shown), f"{mean:.3f}"])
    epochs = report["recipe"]["epochs"]
    return markdown_table([f"after {epochs} epoch{'s' if epochs > 1 else ''}", *shown.values(), "train loss"], rows)


def _layer_table(scores: Mapping[str, Any]) -> str:
    blocks = sorted({int(name.partition("/")[2]) for name in scores})
    rows = [[f"block {block}", _cell(scores[f"class/{block}"]), _cell(scores[f"mean/{block}"])] for block in blocks]
    return markdown_table(["top-1, %", COLUMNS["class"], COLUMNS["mean"]], rows)


def _two_readings(report: Mapping[str, Any]) -> str:
    """Return top-1 accuracies on test and train, and below each the one-hot agreement with what it is."""
    names, classes = _names(report["scores"]), report["classes"]
    header = [
        f"{report['head']} head, %",
        *(f"{COLUMNS[name]}, {part}" for name in names for part in ("test", "train")),
    ]
    rows = []
    for subject, by_pooling in report["scores"].items():
        top1, agreed = [f"{subject}: top-1 accuracy"], [f"{subject}: one-hot agreement *"]
        for name in names:
            score = by_pooling.get(name)
            top1 += [_cell(score), _cell(score["train"])] if score else ["", ""]
            agreed += [percent(score["one_hot_agreement"][part]) if score else "" for part in ("test", "train")]
        rows += [top1, agreed]
    return (
        f"{markdown_table(header, rows)}\n\n* no accuracy: equal entries of one-hot vectors over {classes} classes, "
        f"1 - 2/{classes} (1 - top-1); one guess for all images of balanced classes reads "
        f"{percent(1 - 2 / classes * (1 - 1 / classes))}"
    )


def _names(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for name in COLUMNS if any(name in by_pooling for by_pooling in scores.values())]


def _pooling(name: str) -> str:
    """Return what a feature is called: a pooling, or a pooling after a block."""
    pooling, _, block = name.partition("/")
    return COLUMNS[pooling] + (f", block {block}" if block else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(score: Mapping[str, Any]) -> str:
    return percent(score["accuracy"], score["deviation"])
