"""What MAE's authors, and those who followed, changed in it, one thing at a time, at equal budget.

    uv run python scripts/studies/mae_ablations.py --quick --root DATA
    uv run python scripts/studies/mae_ablations.py --root DATA --only masks,targets

Targets (pixels, per-patch normalisation, features of a frozen teacher), masks (random, grid, block, what the encoder
attends to and its reverse), the decoder's depth, width and attention, mask tokens in the encoder, relative positions,
layer scale, stochastic depth, learned positions. All are scored under random masks, whatever they were trained with.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from budget import SHOWN, at_the_end, keep_images
from encoder_scores import accuracy_columns, baseline_columns, check_labels, score_encoder
from findings import Findings, column, pair_by_seed, read_rows
from perceptual_mae.errors import UserError
from starting import option, start
from study import Study

BASE = "MAE"
TEACHER = "features of a teacher"
ABLATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "targets": {"normalised pixels": ("generator.norm_pix=true",)},
    "masks": {
        "grid": ("masking.kind=grid",),
        "block": ("masking.kind=block",),
        "attended hidden": ("masking.kind=attention", "masking.hide=attended"),
        "unattended hidden": ("masking.kind=attention", "masking.hide=unattended"),
    },
    "decoder": {
        "decoder 1 deep": ("generator.decoder_depth=1",),
        "decoder 2 deep": ("generator.decoder_depth=2",),
        "decoder 8 deep": ("generator.decoder_depth=8",),
        "decoder 64 wide": ("generator.decoder_width=64",),
        "decoder 256 wide": ("generator.decoder_width=256",),
        "cross-attention decoder": ("generator.decoder_attention=cross",),
    },
    "encoder": {
        "mask tokens in the encoder": ("generator.encoder_mask_tokens=true",),
        "relative positions": ("generator.relative_positions=true",),
    },
    "blocks": {
        "layer scale": ("generator.layer_scale=0.1",),  # CaiT, up to 18 blocks
        "stochastic depth": ("generator.drop_path=0.1",),
        "learned positions": ("generator.positions=learned",),
    },
}
"""By group and row: what differs from plain MAE (masked pixel MSE, random masks, decoder 128 wide and 4 deep)."""
ROWS = (*(row for rows in ABLATIONS.values() for row in rows), TEACHER)
BATCH = "training.batch_size=64"  # ours: a short run needs steps
COMMON = "random"
"""Kind of masks under which all rows are scored."""
PICTURES = 8


@dataclass(frozen=True)
class Form:
    """How large the study is."""

    seeds: tuple[int, ...] = option((0, 1, 2), "seeds of the runs")
    images: int = option(10_000, "training images, 0: all")
    epochs: int = option(5, "epochs of pre-training")
    layer: str = option("cifar10", "recipe with images and network")
    only: tuple[str, ...] = option(tuple(ABLATIONS), "groups of ablations")
    rows: tuple[str, ...] = option(ROWS, "rows within them")
    teacher: str = option("", "losses.feature_matching.network as YAML, e.g. '{kind: vgg16, weights: FILE}'")
    teacher_weight: float = option(0.1, "weight of the teacher's term beside the pixels' MSE")
    labels: int = option(10_000, "labelled images for the probe")
    finetune_labels: int = option(10_000, "labelled images for fine-tuning")
    test_images: int = option(10_000, "held-out images for every score")
    finetune_epochs: int = option(20, "epochs of fine-tuning, 0: none")


FULL = Form()
QUICK = Form(
    seeds=(0,),
    images=512,
    epochs=1,
    rows=(
        *("normalised pixels", TEACHER, "grid", "attended hidden", "decoder 1 deep", "cross-attention decoder"),
        *("mask tokens in the encoder", "relative positions", "layer scale"),
    ),
    labels=128,  # the trial's are four times as many, of no more than the images
    finetune_labels=128,
    test_images=100,
    finetune_epochs=1,
)


def plan(form: Form, out: Path, overrides: Sequence[str]) -> Study:
    """Return the cells: plain MAE and every row, their scores, pictures and loss curves."""
    groups = groups_of(form)
    changes = {BASE: ()} | {row: changed for rows in groups.values() for row, changed in rows.items()}
    varied = tuple(word.partition("=")[0] for changed in changes.values() for word in changed)
    study = Study("mae_ablations", "MAE, one thing changed at a time", out, tuple(overrides), varied)
    check_labels(form, *overrides)
    fitting = keep_images([form.layer, "mse", *overrides], form.images)
    words = [form.layer, "mse", *fitting, BATCH, *at_the_end(form.test_images), f"training.epochs={form.epochs}"]
    for row, changed in changes.items():
        for seed in form.seeds:
            run = study.pretrain(row, [*words, *changed], name=_plain(row), seed=seed, kind=row)
            options = ("--metrics", "cheap", "--mask", COMMON, "--limit", str(form.test_images))
            study.score(run, "evaluate", *options, images=form.test_images)
            score_encoder(study, run, form, is_base=row == BASE)
    first = {row: runs[0] for row, runs in study.rows.items()}
    for group, rows in groups.items():
        study.draw_beside(group, [first[BASE], *(first[row] for row in rows)], "--count", str(PICTURES))
    study.draw_curves(list(first.values()))
    study.compare()
    return study


def groups_of(form: Form) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the chosen groups with their chosen rows and what each changes. Raises UserError for unknown names."""
    if unknown := [name for name in form.only if name not in ABLATIONS]:
        raise UserError(f"--only: there is no group {', '.join(unknown)}; choose from: {', '.join(ABLATIONS)}")
    if unknown := [name for name in form.rows if name not in ROWS]:
        raise UserError(f"--rows: there is no {', '.join(unknown)}; choose from: {', '.join(ROWS)}")
    groups = {name: dict(ABLATIONS[name]) for name in form.only}
    if form.teacher and "targets" in groups:
        term = f"losses.feature_matching={{weight: {form.teacher_weight:g}, network: {form.teacher}}}"
        groups["targets"][TEACHER] = (term,)
    chosen = {
        name: {row: changed for row, changed in rows.items() if row in form.rows} for name, rows in groups.items()
    }
    if not any(chosen.values()):
        raise UserError(f"--rows: none of {', '.join(form.rows)} is in {', '.join(form.only)}; name others, or --only")
    return {name: rows for name, rows in chosen.items() if rows}


def report(study: Study, form: Form) -> Findings:
    """Return the tables and figures."""
    findings = Findings(study, read_rows(study.rows))
    columns = [
        column("hidden PSNR, dB", "evaluate", "masked.psnr"),
        column("hidden HF error", "evaluate", "masked.high_frequency", spec=".4f"),
        *accuracy_columns(form),
    ]
    own = column("hidden PSNR, own masks, dB", "summary", "psnr_masked", command="pmae pretrain")
    base = findings.find(BASE)
    for group, rows in groups_of(form).items():
        others = [each for row in rows if (each := findings.find(row)) is not None]
        if base is None or not others:
            continue
        chosen = [base, *others]
        findings.tabulate(group.capitalize(), [*columns, *([own] if group == "masks" else [])], chosen)
        # Masks against each other, too; elsewhere against plain MAE.
        for number, first in enumerate(chosen[:-1] if group == "masks" else [base]):
            findings.tables.append(pair_by_seed(first, chosen[number + 1 :], columns))
    if base is not None:
        findings.tabulate("What any encoder must beat", baseline_columns(form), [base])
    findings.draw_scores(columns)
    findings.figures += study.drawn
    findings.notes += [
        f"reconstructions are scored under {COMMON} masks of the run's ratio; under a run's own masks "
        f"(of {SHOWN} images, attention-guided ones again under random) other pixels are hidden, so that they compare "
        "with no other row",
        "normalised pixels: patches are un-normalised with the true patch's mean and deviation, which flatters PSNR; "
        "their loss, in the figure of curves, is on a scale of its own",
    ]
    if "targets" in form.only and TEACHER in form.rows and not form.teacher:
        findings.notes.append(f"no row '{TEACHER}': it needs a network with its weights; name one by --teacher")
    return findings


def _plain(row: str) -> str:
    return row.replace(" ", "_").replace("-", "_").lower()


if __name__ == "__main__":
    sys.exit(start("mae_ablations", str(__doc__), QUICK, FULL, plan, report))
