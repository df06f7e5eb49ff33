"""Which critic pays, on CIFAR-10: a ladder of single changes, the best four at three seeds, what moves the probe.

    uv run python scripts/studies/critic.py --part ladder --root DATA --list
    uv run python scripts/studies/critic.py --part ladder --root DATA --resnet FILE --squeezenet FILE
    uv run python scripts/studies/critic.py --part final --root DATA --resnet FILE --rows NAME,...
    uv run python scripts/studies/critic.py --part sharpen --root DATA --resnet FILE

The ladder selects on images held out from train; the final and the arms are scored on test. Questions, rows and what
was expected before any number: docs/results/critic.md. With --out docs/results/critic/PART git keeps the scores of
finished runs, and a later call from another checkout goes on from them.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from budget import at_the_end
from critic_rows import PARTS, ROWS, control_of, needs_squeezenet, with_controls, words_of
from findings import Findings, column, in_words, pair_by_seed, per_cent, read_rows
from perceptual_mae.errors import UserError
from perceptual_mae.report.columns import Column
from starting import option, start
from study import Study, Trained

ALL = "all"
COMMON = (
    *("data.workers=0", "training.batch_size=64"),
    *("training.checkpoint_every=1", "training.keep_last=1"),  # a stopped run loses an epoch at most
)
NETWORK = "resnet20"
"""Of FID and KID: none that any row is trained with."""
NEIGHBOURS = "20"
SHIPPED = "msg_gan_p"
"""Next to the control in every picture."""
COLUMNS, PICTURES = 6, 8
"""Rows of a sheet besides these two, and its images."""
IMAGES_PER_SECOND = 110
"""Of a training, by one thread: an assumption, for the hours that are stated before anything was run."""


@dataclass(frozen=True)
class Form:
    """How large a part of the study is."""

    part: str = option("ladder", f"{', '.join(PARTS)}: each has its own defaults")
    rows: tuple[str, ...] = option((ALL,), "rows, each with its control; all: those of the part")
    seeds: tuple[int, ...] = option((0,), "seeds of the runs")
    epochs: int = option(4, "epochs of pre-training")
    epoch_images: int = option(5_000, "images of an epoch")
    val_images: int = option(5_000, "training images held out, and scored in place of test; 0: none, test is scored")
    labels: int = option(10_000, "labelled training images for probe and nearest neighbours")
    test_images: int = option(5_000, "images for every score")
    resnet: str = option("", "file of the CIFAR ResNet-20 for FID and KID; none: without them")
    squeezenet: str = option("", "file of SqueezeNet 1.0; none: without the rows that need it")
    layer: str = option("cifar10", "recipe with images and network")


LADDER = Form()
FINAL = Form(part="final", seeds=(0, 1, 2), epochs=3, epoch_images=20_000, val_images=0, test_images=10_000)
FULL = {"ladder": LADDER} | {part: replace(FINAL, part=part) for part in ("final", "arms", "sharpen")}
FULL["price"] = replace(FINAL, part="price", seeds=(0,))
QUICK_ROWS = {"ladder": ("msg_gan", "start"), "final": ("ls_gan_p", "start"), "arms": ("start",)}
QUICK_ROWS |= {"price": ("every_2",), "sharpen": ("mse_sharpened",)}
SHARE = 0.15
"""Of a run's images, on which its decoder is sharpened."""
QUICK = {
    part: replace(form, rows=QUICK_ROWS[part], seeds=(0,), epochs=1, epoch_images=512, labels=128, test_images=100)
    for part, form in FULL.items()
}


def plan(form: Form, out: Path, overrides: Sequence[str]) -> Study:
    """Return the cells: every row with its control, their scores, and sheets of the same images."""
    names = rows_of(form)
    words = {name: words_of(name, form.squeezenet) for name in names}
    keys = [word.partition("=")[0] for each in words.values() for word in each if "=" in word]
    study = Study(
        f"critic_{form.part}",
        f"The critic: {form.part}",
        out,
        tuple(overrides),
        ("data.val_images", "evaluation.split", *dict.fromkeys(keys)),
        assumed_speed=IMAGES_PER_SECOND,
    )
    base = [*COMMON, *at_the_end(form.test_images)]
    base += [f"training.epochs={form.epochs}", f"training.epoch_images={form.epoch_images}"]
    base += [f"data.val_images={form.val_images}", "evaluation.split=val"] if form.val_images else []
    for name in names:
        for number, seed in enumerate(form.seeds):
            if source := ROWS[name].sharpens:  # it is among the rows, as its control
                options = {"name": name, "share": SHARE, "images": form.epochs * form.epoch_images}
                run = study.sharpen(name, study.rows[source][number], words[name], **options)
            else:
                run = study.pretrain(name, [form.layer, *words[name], *base], name=name, seed=seed, kind=name)
            _score(study, run, form)
    first = {name: runs[0] for name, runs in study.rows.items()}
    for control, rows in by_control(list(first)).items():
        # Columns are named after run folders; a sheet of all rows would be too wide to be read.
        shown = [SHIPPED] if SHIPPED in first else []
        others = [row for row in rows if row not in shown] or rows
        for number, begin in enumerate(range(0, len(others), COLUMNS), 1):
            sheet = dict.fromkeys([control, *shown, *others[begin : begin + COLUMNS]])
            study.draw_beside(f"{control}_{number}", [first[name] for name in sheet], "--count", str(PICTURES))
    study.compare()
    return study


def rows_of(form: Form) -> list[str]:
    """Return the names of the rows that are run, with their controls. Raises UserError for unknown names."""
    if form.part not in PARTS:
        raise UserError(f"--part: there is no {form.part}; choose from: {', '.join(PARTS)}")
    known = list(ROWS) if form.part == "final" else with_controls(PARTS[form.part])
    asked = PARTS[form.part] if form.rows == (ALL,) else form.rows
    if unknown := [name for name in asked if name not in known]:
        raise UserError(f"--rows: {form.part} has no {', '.join(unknown)}; choose from: {', '.join(known)}")
    chosen = tuple(name for name in asked if form.squeezenet or not needs_squeezenet(name))
    if not chosen:
        raise UserError(f"--rows: {', '.join(asked)} compare through SqueezeNet; name its file by --squeezenet")
    return with_controls(chosen)


def by_control(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the rows that have a control, under its name."""
    controls = dict.fromkeys(control for name in names if (control := control_of(name)))
    return {control: [name for name in names if control_of(name) == control] for control in controls}


def _score(study: Study, run: Trained, form: Form) -> None:
    """Score reconstructions, a linear probe and nearest neighbours; the split is the run's own."""
    options: tuple[str, ...] = ("--metrics", "cheap")
    if form.resnet:
        options = ("--metrics", "cheap,fid,kid", "--features", f"cifar_resnet:{form.resnet},name={NETWORK}")
    study.score(run, "evaluate", *options, "--limit", str(form.test_images), images=form.test_images)
    limits = ("--limit", str(form.labels), "--test-limit", str(form.test_images))
    images = form.labels + form.test_images
    study.score(run, "probe", *limits, "--seeds", "0", stem="probe_cached", images=images)
    study.score(run, "knn", *limits, "--neighbours", NEIGHBOURS, images=images)


def columns_of(form: Form) -> list[Column]:
    """Return the columns of what `_score` leaves, realism first."""
    realism = [
        column(f"FID [{NETWORK}]", "evaluate", f"composite.fid[{NETWORK}]", metric="fid"),
        column(f"KID [{NETWORK}]", "evaluate", f"composite.kid[{NETWORK}]", spec=".3f", metric="kid"),
    ]
    return [
        *(realism if form.resnet else []),
        column("hidden SSIM", "evaluate", "masked.ssim", spec=".3f"),
        column("hidden PSNR, dB", "evaluate", "masked.psnr"),
        column("hidden HF error", "evaluate", "masked.high_frequency", spec=".4f"),
        column("spread within a patch, over the original's", "evaluate", "masked.patch_std", spec=".3f"),
        per_cent("LP, mean pool", "probe_cached", "encoder.mean.accuracy", "pmae probe"),
        per_cent("kNN, mean pool", "knn", f"encoder.mean.{NEIGHBOURS}", "pmae knn"),
    ]


def report(study: Study, form: Form) -> Findings:
    """Return the tables, each row less its control and less the row it starts from, and what follows in words."""
    findings = Findings(study, read_rows(study.rows))
    columns = columns_of(form)
    split = f"{form.val_images} images held out from train" if form.val_images else "test images"
    findings.tabulate("All rows", columns, notes=[f"scored on {form.test_images} of the {split}"])
    finished = {group.label: group for group in findings.groups}
    for control, rows in by_control(list(finished)).items():
        if control in finished:
            others = [finished[name] for name in rows]
            findings.tables.append(pair_by_seed(finished[control], others, columns))
            if len(form.seeds) > 1:
                findings.notes += [line for other in others for line in in_words(finished[control], other, columns)]
    for base in dict.fromkeys(ROWS[name].base for name in finished):
        changed = [finished[name] for name in finished if ROWS[name].base == base != control_of(name)]
        if base in finished and changed:
            findings.tables.append(pair_by_seed(finished[base], changed, columns))
    findings.draw_scores(columns)
    findings.figures += study.drawn
    if form.rows == (ALL,):
        missing = [name for name in PARTS[form.part] if name not in study.rows]
        findings.notes += [f"no row {name}: it needs --squeezenet" for name in missing]
    return findings


def main(words: Sequence[str] | None = None) -> int:
    """Run a part by its own defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--part", choices=PARTS, default="ladder")
    part = parser.parse_known_args(words)[0].part
    return start(f"critic_{part}", str(__doc__), QUICK[part], FULL[part], plan, report, words)


if __name__ == "__main__":
    sys.exit(main())
