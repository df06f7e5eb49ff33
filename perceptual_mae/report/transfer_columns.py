"""The columns of dense transfer, the paper's Table 3: mIoU of `pmae segment`, AP of `pmae detect`."""

from collections.abc import Mapping, Sequence
from functools import partial

from perceptual_mae.report.columns import Column
from perceptual_mae.report.run_records import RunRecord

SCORES: Mapping[str, Mapping[str, tuple[str, str | None]]] = {
    "detect": {"box_ap": ("box AP, %", "box"), "mask_ap": ("mask AP, %", "mask")},
    "segment": {"miou": ("mIoU, %", "miou"), "aacc": ("aAcc, %", None)},
}
"""By command and score: heading, and the paper's field."""
PAPERS = ("ade20k", "coco_vitdet", "coco_mimdet")
"""Recipes whose scores may stand next to the paper's."""


def transfer_columns(records: Sequence[RunRecord]) -> list[Column]:
    """Return a column for each score of each file of dense transfer that any run has; none where none has one."""
    columns = []
    for command, scores in SCORES.items():
        reports = {
            stem: report
            for record in records
            for stem, report in record.scores.items()
            if report.get("kind") == command
        }
        pretrained: list[str] = []
        for stem in sorted(reports):
            report = reports[stem]
            recipe = report.get("recipe", {}).get("name", "")
            is_papers = recipe in PAPERS and not report.get("from_scratch") and not report.get("frozen")
            pretrained += [stem] if is_papers else []
            what = stem.removeprefix(f"{command}_").replace("_", " ")
            for name, (heading, published) in scores.items():
                columns.append(
                    Column(
                        f"{stem}.{name}",
                        f"{heading} ({what})",
                        partial(_mean_of, stem=stem, name=name),
                        stem,
                        f"pmae {command}",
                        published=published if pretrained[:1] == [stem] else None,
                    )
                )
    return columns


def _mean_of(record: RunRecord, stem: str, name: str) -> float | None:
    """Return the mean over seeds of a score, in per cent."""
    mean = record.scores.get(stem, {}).get("scores", {}).get(name, {}).get("mean")
    return None if mean is None else 100 * float(mean)
