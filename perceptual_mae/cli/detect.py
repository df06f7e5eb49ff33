"""`pmae detect`: an encoder trained with Mask R-CNN on boxes and masks."""

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

LABELS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
KINDS = ("box", "mask")


def detect_command(
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
    """Train an encoder to detect, e.g. pmae detect runs/a coco_subset --root coco; the same command goes on.

    Scores are COCO's average precision of boxes and masks; data are images and annotations in COCO's format.
    """
    numbers = read_numbers(seeds, "--seeds", least=0)
    from perceptual_mae.transfer.detection.config import DetectConfig
    from perceptual_mae.transfer.recipes import read_recipe

    arguments = Overrides.of(recipe, root, from_scratch=from_scratch).arguments
    config, name = read_recipe("detect", DetectConfig, arguments)
    from perceptual_mae.transfer.detection.scores import check_backend
    from perceptual_mae.transfer.encoders import open_source

    source = open_source(encoder, from_scratch=from_scratch, ema=ema, trust_code=trust_code)
    if dry_run:
        from perceptual_mae.transfer.detection.build import dry_run_detection

        print_lines(*dry_run_detection(source, config, frozen=freeze))
        return
    check_backend(config.evaluation.backend)
    from perceptual_mae.evaluation.open_run import accelerator_of
    from perceptual_mae.evaluation.resumption import Checkpoints
    from perceptual_mae.transfer.detection.dataset import check_headers
    from perceptual_mae.transfer.detection.evaluate import detect_run
    from perceptual_mae.transfer.seeds import Files

    files = Files.of(source, "detect", name, out, frozen=freeze, limits=(limit, test_limit))
    train_data, test_data = (
        data.first(count) for data, count in zip(config.data.open(), (limit, test_limit), strict=True)
    )
    for data in (train_data, test_data):
        check_headers(data)
    accelerator = accelerator_of(config.training.precision)
    with transferring(accelerator) as on_progress:
        checkpoints = Checkpoints.of(files.result, fresh=fresh, log=on_progress.log)
        report = detect_run(
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
    """Return the table of boxes and masks, a row a seed and the mean, and that of classes with objects."""
    rows = []
    for kind in KINDS:
        scores = {key: report["scores"].get(f"{kind}_{key}") for key in LABELS}
        for place, seed in enumerate(report["seeds"]):
            by_seed = [_percent(score["by_seed"][place]) if score else "-" for score in scores.values()]
            rows.append([f"{kind}, seed {seed}", *by_seed])
        if len(report["seeds"]) > 1:
            rows.append([f"{kind}, mean", *(_cell(score) if score else "-" for score in scores.values())])
    by_class = [
        [name, str(entry["objects"]), *(_percent(entry[f"{kind}_ap"]) for kind in KINDS)]
        for name, entry in report["per_class"].items()
        if entry["objects"]
    ]
    steps = report["recipe"]["schedule"]["steps"]
    return [
        markdown_table([f"after {steps:,} steps, %", *LABELS.values()], rows),
        "",
        markdown_table(["class", "objects", "box AP, %", "mask AP, %"], by_class),
    ]


def _cell(score: Mapping[str, Any]) -> str:
    std = "" if score["deviation"] is None else f" ± {100 * score['deviation']:.2f}"
    return f"{100 * score['mean']:.2f}{std}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
