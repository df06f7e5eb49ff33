"""KTH MAE on CIFAR-10: random, grid and block masks, a small and a medium network, heads on the frozen encoder.

    uv run python scripts/studies/kth_mae.py --quick --root DATA
    uv run python scripts/studies/kth_mae.py --root DATA --epochs 100

Accuracies are of train and of test, and beside them stands the reading of the text's code: the share of equal entries
of one-hot vectors, which is no accuracy. Heads see whole images.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from budget import at_the_end, keep_images, refuse_more_labels
from encoder_scores import OF_ONE_SEED
from findings import Findings, column, pair_by_seed, per_cent, read_rows
from perceptual_mae.evaluation.representation.kth_heads import accuracy_behind
from perceptual_mae.report.columns import Column
from perceptual_mae.sweep.grid import Axis
from starting import option, start
from study import Study, Trained

RATIO = 0.75
"""Of the comparison of masks and sizes."""
HEADS = ("dense", "mlp")
TEXT = {"small, random": 0.906, "small, grid": 0.862, "medium, random": 0.933}
"""What the text calls accuracy."""
CLASSES = 10
CURVE_METRICS = tuple(f"KTH head {head}, {part}" for head in HEADS for part in ("test", "train"))
PICTURES = 4
VARIED = (
    *("masking.kind", "masking.ratio", "generator.width", "generator.depth"),
    *("generator.decoder_width", "generator.decoder_depth"),
)


@dataclass(frozen=True)
class Form:
    """How large the study is."""

    seeds: tuple[int, ...] = option((0, 1, 2), "seeds of the runs")
    images: int = option(40_000, "training images, 0: all; the text holds a fifth back")
    epochs: int = option(100, "epochs of pre-training")
    sizes: tuple[str, ...] = option(("small", "medium"), "networks")
    masks: tuple[str, ...] = option(("random", "grid", "block"), "kinds of masks")
    ratios: tuple[float, ...] = option((0.5, 0.6, 0.7, 0.75, 0.8, 0.9), "masking ratios of the curve, random masks")
    curve_seeds: tuple[int, ...] = option((0,), "seeds of the curve")
    labels: int = option(40_000, "labelled images for the heads")
    test_images: int = option(10_000, "held-out images for every score")
    head_epochs: int = option(50, "epochs of a head")


FULL = Form()
QUICK = Form(
    seeds=(0,), images=1_024, epochs=1, masks=("random", "grid"), ratios=(0.5, 0.75), labels=256, test_images=200,
)  # fmt: skip


def plan(form: Form, out: Path, overrides: Sequence[str]) -> Study:
    """Return the cells: sizes by masks, the curve over ratios, pictures, loss curves."""
    study = Study("kth_mae", "KTH MAE on CIFAR-10", out, tuple(overrides), VARIED)
    refuse_more_labels(form.images, {"--labels": form.labels})
    fitting = keep_images([recipe(form.sizes[0]), "mse", *overrides], form.images)
    base = [*fitting, f"training.epochs={form.epochs}", *at_the_end(form.test_images)]
    for size in form.sizes:
        for mask in form.masks:
            for seed in form.seeds:
                add_run(study, form, base, size, mask, RATIO, seed)
    for ratio in form.ratios:
        is_there = ratio == RATIO and "random" in form.masks
        for size in form.sizes if not is_there else ():
            for seed in form.curve_seeds:
                add_run(study, form, base, size, "random", ratio, seed)
    add_pictures(study, form)
    return study


def recipe(size: str) -> str:
    return f"cifar10_kth_{size}"


def row_of(size: str, mask: str, ratio: float) -> str:
    """Return what a row is called."""
    return f"{size}, {mask}" + (f", ratio {ratio:g}" if ratio != RATIO else "")


def baseline_rows(form: Form) -> list[str]:
    return [row_of(size, form.masks[0], RATIO) for size in form.sizes]


def add_run(study: Study, form: Form, base: Sequence[str], size: str, mask: str, ratio: float, seed: int) -> None:
    """Add a run with its scores."""
    words = [recipe(size), "mse", *base, f"masking.kind={mask}", f"masking.ratio={ratio:g}"]
    # The share that is hidden decides what the encoder has to do: each ratio is a kind of its own.
    run = study.pretrain(
        row_of(size, mask, ratio), words, name=f"{size}_{mask}_{ratio:g}", seed=seed, kind=f"{size} {ratio:g}"
    )
    run = Trained(run.path, size, seed)
    reconstruction = ("--metrics", "cheap", "--mask", "random", "--limit", str(form.test_images))
    study.score(run, "evaluate", *reconstruction, images=form.test_images)
    limits = ("--limit", str(form.labels), "--test-limit", str(form.test_images))
    # One run of each size has an untrained encoder and raw pixels beside it.
    is_baseline = (mask, ratio, seed) == (form.masks[0], RATIO, form.seeds[0])
    for head in HEADS:
        options = ("--head", head, "--seeds", "0", "--epochs", str(form.head_epochs), *limits)
        images = (form.labels + form.test_images) * (1 + is_baseline)
        run = Trained(run.path, f"{size} {head}" + (" beside baselines" if is_baseline else ""), seed)
        study.score(
            run, "probe", *options, *(("--baselines",) if is_baseline else ()), stem=f"probe_kth_{head}", images=images
        )


def add_pictures(study: Study, form: Form) -> None:
    """Add quadruples (original | masked | raw | composite) of each size and mask, and the loss curves."""
    first = {row_of(size, mask, RATIO): (size, mask) for size in form.sizes for mask in form.masks}
    runs = [study.rows[row][0] for row in first]
    for run, (size, mask) in zip(runs, first.values(), strict=True):
        name = f"quadruples_{size}_{mask}"
        study.draw(name, "visualize", str(run.path), "--count", str(PICTURES), needs=[run.summary])
    study.draw_curves(runs)
    study.compare()


def report(study: Study, form: Form) -> Findings:
    """Return the tables and figures."""
    findings = Findings(study, read_rows(study.rows))
    command = "pmae probe --head"
    columns = [
        per_cent(f"KTH head {head}, {part}", f"probe_kth_{head}", place, f"{command} {head}")
        for head in HEADS
        for part, place in (("test", "encoder.class.accuracy"), ("train", "encoder.class.train.accuracy"))
    ]
    columns += [
        column("hidden PSNR, dB", "evaluate", "masked.psnr"),
        column("hidden HF error", "evaluate", "masked.high_frequency", spec=".4f"),
    ]
    findings.tabulate("Masks, sizes and ratios: top-1, %", columns, notes=["class token of whole images"])
    add_differences(findings, form, columns)
    beside = [
        per_cent(f"{head}, {name}", f"probe_kth_{head}", f"{place}.accuracy", OF_ONE_SEED)
        for head in HEADS
        for name, place in (("a random encoder", "random encoder.class"), ("raw pixels", "raw pixels.pixels"))
    ]
    firsts = [group for group in findings.groups if group.label in baseline_rows(form)]
    if firsts:
        findings.tabulate("What any encoder must beat: top-1 on test, %", beside, firsts)
    readings = [
        column(f"{head}, {part}", f"probe_kth_{head}", f"encoder.class.one_hot_agreement.{part}", spec=".3f",
               command=f"{command} {head}")
        for head in HEADS
        for part in ("test", "train")
    ]  # fmt: skip
    findings.tabulate(
        "The other reading: equal entries of one-hot vectors, no accuracy",
        readings,
        notes=[
            "1 - 0.2 (1 - top-1): a constant guess reads 0.82; the text's, on train: "
            + ", ".join(f"{row} {told}" for row, told in TEXT.items())
        ],
    )
    findings.draw_scores(columns)
    axes = [Axis("masking.ratio", tuple(f"{ratio:g}" for ratio in sorted(form.ratios))), Axis("size", form.sizes)]
    findings.draw_curve("accuracy_by_ratio", axes, places_of(form), CURVE_METRICS)
    findings.figures += study.drawn
    findings.notes += [
        "the text's top-1 on train, worked back from its table: "
        + ", ".join(f"{row} {100 * accuracy_behind(told, CLASSES):.1f}" for row, told in TEXT.items()),
        "reconstructions are scored under random masks of the run's own ratio: over ratios only accuracies compare",
    ]
    return findings


def add_differences(findings: Findings, form: Form, columns: Sequence[Column]) -> None:
    """Add what the text compares: other masks with the first at each size, and the other sizes with the first."""
    for size in form.sizes:
        against(
            findings,
            row_of(size, form.masks[0], RATIO),
            [row_of(size, mask, RATIO) for mask in form.masks[1:]],
            columns,
        )
    rows = [row_of(size, form.masks[0], RATIO) for size in form.sizes]
    against(findings, rows[0], rows[1:], columns)


def against(findings: Findings, first: str, others: Sequence[str], columns: Sequence[Column]) -> None:
    base, found = findings.find(first), [each for row in others if (each := findings.find(row)) is not None]
    if base is not None and found:
        findings.tables.append(pair_by_seed(base, found, columns))


def places_of(form: Form) -> dict[str, dict[str, str]]:
    """Return where rows stand on the curve: random masks of every ratio and size."""
    return {
        row_of(size, "random", ratio): {"masking.ratio": f"{ratio:g}", "size": size}
        for size in form.sizes
        for ratio in form.ratios
    }


if __name__ == "__main__":
    sys.exit(start("kth_mae", str(__doc__), QUICK, FULL, plan, report))
