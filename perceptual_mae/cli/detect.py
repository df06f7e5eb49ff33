"""`pmae detect`: an encoder trained with Mask R-CNN on boxes and masks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perceptual_mae.cli.output import percent
from perceptual_mae.cli.transferring import over_seeds, transfer_command
from perceptual_mae.report.markdown_table import markdown_table

if TYPE_CHECKING:
    from perceptual_mae.transfer.detection.task import Detection

LABELS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
KINDS = ("box", "mask")


def detection() -> type["Detection"]:
    """Import the task."""
    from perceptual_mae.transfer.detection.task import Detection

    return Detection


def tables(report: Mapping[str, Any]) -> list[str]:
    """Return the table of boxes and masks, a row a seed and the mean, and that of classes with objects."""
    rows = []
    for kind in KINDS:
        scores = {key: report["scores"].get(f"{kind}_{key}") for key in LABELS}
        for place, seed in enumerate(report["seeds"]):
            by_seed = [percent(score["by_seed"][place]) if score else "-" for score in scores.values()]
            rows.append([f"{kind}, seed {seed}", *by_seed])
        if len(report["seeds"]) > 1:
            rows.append([f"{kind}, mean", *(over_seeds(score) if score else "-" for score in scores.values())])
    by_class = [
        [name, str(entry["objects"]), *(percent(entry[f"{kind}_ap"]) for kind in KINDS)]
        for name, entry in report["per_class"].items()
        if entry["objects"]
    ]
    steps = report["recipe"]["schedule"]["steps"]
    return [
        markdown_table([f"after {steps:,} steps, %", *LABELS.values()], rows),
        "",
        markdown_table(["class", "objects", "box AP, %", "mask AP, %"], by_class),
    ]


detect_command = transfer_command(
    detection,
    tables,
    """Train an encoder to detect, e.g. pmae detect runs/a coco_subset --root coco; the same command goes on.

    Scores are COCO's average precision of boxes and masks; data are images and annotations in COCO's format.
    """,
)
