"""`pmae segment`: an encoder trained with UperNet on classes of pixels."""

from collections.abc import Mapping
from typing import Any

from perceptual_mae.cli.options import Ema, Fresh, TrustCode, read_numbers
from perceptual_mae.cli.output import print_lines
from perceptual_mae.cli.transferring import (
    DryRun,
    Encoder,
    Freeze,
    FromScratch,
    Limit,
    OutFolder,
    Overrides,
    Recipe,
    Root,
    Save,
    Seeds,
    TestLimit,
    transferring,
    write_report,
)
from perceptual_mae.report.markdown_table import markdown_table

LABELS = {"miou": "mIoU, %", "aacc": "aAcc, %", "macc": "mAcc, %"}


def segment_command(
    encoder: Encoder,
    recipe: Recipe,
    root: Root = None,
    out: OutFolder = None,
    seeds: Seeds = "0",
    from_scratch: FromScratch = False,
    freeze: Freeze = False,
    limit: Limit = None,
    test_limit: TestLimit = None,
    ema: Ema = None,
    save: Save = False,
    trust_code: TrustCode = False,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Train an encoder to segment, e.g. pmae segment runs/a camvid --root camvid; the same command goes on.

    Scores are mIoU, and the accuracy of pixels and of classes, at the size of the masks.
    """
    numbers = read_numbers(seeds, "--seeds", least=0)
    from perceptual_mae.transfer.recipes import read_recipe
    from perceptual_mae.transfer.segmentation.config import SegmentConfig

    arguments = Overrides.of(recipe, root, from_scratch=from_scratch).arguments
    config, name = read_recipe("segment", SegmentConfig, arguments)
    from perceptual_mae.transfer.encoders import open_source

    source = open_source(encoder, from_scratch=from_scratch, ema=ema, trust_code=trust_code)
    if dry_run:
        from perceptual_mae.transfer.segmentation.dry_run import dry_run_segmentation

        print_lines(*dry_run_segmentation(source, config, frozen=freeze))
        return
    from perceptual_mae.evaluation.open_run import accelerator_of
    from perceptual_mae.evaluation.resumption import Checkpoints
    from perceptual_mae.transfer.seeds import Files
    from perceptual_mae.transfer.segmentation.data import check_headers
    from perceptual_mae.transfer.segmentation.evaluate import segment_run

    files = Files.of(source, "segment", name, out, frozen=freeze, limits=(limit, test_limit))
    train_data, test_data = (
        config.data.build(split).first(count)
        for split, count in (("train", limit), (config.evaluation.split, test_limit))
    )
    for data in (train_data, test_data):
        check_headers(data)
    accelerator = accelerator_of(config.training.precision)
    with transferring(accelerator) as on_progress:
        checkpoints = Checkpoints.of(files.result, fresh=fresh, log=on_progress.log)
        report = segment_run(
            source,
            config,
            train_data,
            test_data,
            accelerator,
            files,
            seeds=numbers,
            frozen=freeze,
            save_weights=save,
            checkpoints=checkpoints,
            on_progress=on_progress,
        )
    write_report({**report, "recipe": {"name": name, **report["recipe"]}}, tables, files, checkpoints, accelerator)


def tables(report: Mapping[str, Any]) -> list[str]:
    """Return the table of scores with the floor of a constant answer, and that of classes."""
    floor = report["floor"]
    rows = [
        [f"seed {seed}", *(f"{100 * report['scores'][key]['by_seed'][place]:.2f}" for key in LABELS)]
        for place, seed in enumerate(report["seeds"])
    ]
    if len(rows) > 1:
        rows.append(["mean", *(_cell(report["scores"][key]) for key in LABELS)])
    rows.append([f"all {floor['class']}", *(f"{100 * floor[key]:.2f}" for key in LABELS)])
    steps = report["recipe"]["schedule"]["steps"]
    by_class = [
        [name, f"{100 * each['share']:.2f}", _share(each["iou"]), _share(each["accuracy"])]
        for name, each in report["per_class"].items()
    ]
    return [
        markdown_table([f"after {steps:,} steps", *LABELS.values()], rows),
        "",
        markdown_table(["class", "pixels, %", "IoU, %", "accuracy, %"], by_class),
    ]


def _cell(score: Mapping[str, Any]) -> str:
    std = "" if score["deviation"] is None else f" ± {100 * score['deviation']:.2f}"
    return f"{100 * score['mean']:.2f}{std}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
