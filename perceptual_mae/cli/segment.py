"""`pmae segment`: an encoder trained with UperNet on classes of pixels."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perceptual_mae.cli.output import percent
from perceptual_mae.cli.transferring import over_seeds, transfer_command
from perceptual_mae.report.markdown_table import markdown_table

if TYPE_CHECKING:
    from perceptual_mae.transfer.segmentation.task import Segmentation

LABELS = {"miou": "mIoU, %", "aacc": "aAcc, %", "macc": "mAcc, %"}


def segmentation() -> type["Segmentation"]:
    """Import the task."""
    from perceptual_mae.transfer.segmentation.task import Segmentation

    return Segmentation


def tables(report: Mapping[str, Any]) -> list[str]:
    """Return the table of scores with the floor of a constant answer, and that of classes."""
    floor = report["floor"]
    rows = [
        [f"seed {seed}", *(percent(report["scores"][key]["by_seed"][place]) for key in LABELS)]
        for place, seed in enumerate(report["seeds"])
    ]
    if len(rows) > 1:
        rows.append(["mean", *(over_seeds(report["scores"][key]) for key in LABELS)])
    rows.append([f"all {floor['class']}", *(percent(floor[key]) for key in LABELS)])
    steps = report["recipe"]["schedule"]["steps"]
    by_class = [
        [name, *(percent(each[key]) for key in ("share", "iou", "accuracy"))]
        for name, each in report["per_class"].items()
    ]
    return [
        markdown_table([f"after {steps:,} steps", *LABELS.values()], rows),
        "",
        markdown_table(["class", "pixels, %", "IoU, %", "accuracy, %"], by_class),
    ]


segment_command = transfer_command(
    segmentation,
    tables,
    """Train an encoder to segment, e.g. pmae segment runs/a camvid --root camvid; the same command goes on.

    Scores are mIoU, and the accuracy of pixels and of classes, at the size of the masks.
    """,
)
