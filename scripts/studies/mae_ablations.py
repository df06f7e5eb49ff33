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

from findings import Findings, column, pair_by_seed, per_cent, read_rows
from perceptual_mae.errors import UserError
from starting import option, start
from study import CURVES, SHOWN, Study, Trained, at_the_end, keep_images

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
    rows: str = option("", "names of rows within them, separated by commas; none: all")
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
    rows="normalised pixels,grid,attended hidden,decoder 1 deep,cross-attention decoder,mask tokens in the encoder,"
    "relative positions",
    labels=256,
    finetune_labels=64,
    test_images=100,
    finetune_epochs=1,
)


def plan(form: Form, out: Path, overrides: Sequence[str]) -> Study:
    """Return the cells: plain MAE and every row, their scores, pictures and loss curves."""
    study = Study("mae_ablations", "MAE, one thing changed at a time", out, tuple(overrides))
    fitting = keep_images([form.layer, "mse", *overrides], form.images)
    words = [form.layer, "mse", *fitting, BATCH, *at_the_end(form.test_images), f"training.epochs={form.epochs}"]
    rows = {BASE: (), **rows_of(form)}
    for row, changed in rows.items():
        for seed in form.seeds:
            run = study.pretrain(row, [*words, *changed], name=_plain(row), seed=seed, kind=row)
            add_scores(study, run, form, is_baseline=row == BASE and seed == form.seeds[0])
    first = [study.rows[row][0] for row in rows]
    for group in form.only:
        beside = [study.rows[row][0] for row in rows if row in ABLATIONS[group] or (row, group) == (TEACHER, "targets")]
        if beside:
            words = [word for run in beside for word in ("--beside", str(run.path))]
            words = ["visualize", str(first[0].path), *words, "--view", "composite", "--count", str(PICTURES)]
            study.draw(group, *words, needs=[run.summary for run in (first[0], *beside)])
    curves = [*(str(run.path) for run in first), "--key", "raw.mse"]
    study.draw("loss_curves", *curves, needs=[run.summary for run in first], script=CURVES)
    study.compare(study.runs)
    return study


def rows_of(form: Form) -> dict[str, tuple[str, ...]]:
    """Return the chosen rows with what they change. Raises UserError for names that are none."""
    if unknown := [name for name in form.only if name not in ABLATIONS]:
        raise UserError(f"--only: there is no group {', '.join(unknown)}; choose from: {', '.join(ABLATIONS)}")
    rows = {row: changed for group in form.only for row, changed in ABLATIONS[group].items()}
    if form.teacher and "targets" in form.only:
        term = f"losses.feature_matching={{weight: {form.teacher_weight:g}, network: {form.teacher}}}"
        rows[TEACHER] = (term,)
    wanted = [name.strip() for name in form.rows.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in rows]:
        raise UserError(f"--rows: there is no {', '.join(unknown)}; choose from: {', '.join(rows)}")
    return {row: changed for row, changed in rows.items() if not wanted or row in wanted}


def add_scores(study: Study, run: Trained, form: Form, *, is_baseline: bool) -> None:
    """Score a run: reconstruction, linear probe (beside a random encoder and pixels once), fine-tuning."""
    tested = ("--test-limit", str(form.test_images))
    reconstruction = ("--metrics", "cheap", "--mask", COMMON, "--limit", str(form.test_images))
    study.score(run, "evaluate", *reconstruction, images=form.test_images)
    probe = ("--seeds", "0", *(("--baselines",) if is_baseline else ()), "--limit", str(form.labels), *tested)
    images = (form.labels + form.test_images) * (1 + is_baseline)
    study.score(run, "probe", *probe, stem="probe_cached", images=images)
    if form.finetune_epochs:
        tune = ("--recipe", "small", "--epochs", str(form.finetune_epochs), "--seeds", str(run.seed))
        tune = (*tune, "--limit", str(form.finetune_labels), *tested)
        images = form.finetune_epochs * form.finetune_labels
        study.score(run, "finetune", *tune, stem="finetune_small", images=images)
        if is_baseline:
            study.score(run, "finetune", *tune, "--from-scratch", stem="finetune_small_scratch", images=images)


def report(study: Study, form: Form) -> Findings:
    """Return the tables and figures."""
    findings = Findings(study, read_rows(study.rows))
    accuracies = [
        per_cent("LP, class token", "probe_cached", "encoder.class.accuracy", "pmae probe"),
        per_cent("LP, mean pool", "probe_cached", "encoder.mean.accuracy", "pmae probe"),
    ]
    accuracies += [per_cent("FT", "finetune_small", "top1.accuracy", "pmae finetune")] if form.finetune_epochs else []
    columns = [
        column("hidden PSNR, dB", "evaluate", "masked.psnr"),
        column("hidden HF error", "evaluate", "masked.high_frequency", spec=".4f"),
        *accuracies,
    ]
    own = column("hidden PSNR, own masks, dB", "summary", "psnr_masked", command="pmae pretrain")
    base = findings.find(BASE)
    for group in form.only:
        chosen = [each for each in findings.groups if each.label in ABLATIONS[group] or each.label == BASE]
        chosen += [each for each in findings.groups if each.label == TEACHER and group == "targets"]
        if len(chosen) > 1:
            findings.tabulate(group.capitalize(), [*columns, *([own] if group == "masks" else [])], chosen)
            if base is not None:
                findings.tables.append(pair_by_seed(base, [each for each in chosen if each is not base], columns))
    if base is not None:
        beside = [
            per_cent(f"LP of {subject}", "probe_cached", f"{place}.accuracy", "pmae probe")
            for subject, place in (
                ("a random encoder, class token", "random encoder.class"),
                ("a random encoder, mean pool", "random encoder.mean"),
                ("raw pixels", "raw pixels.pixels"),
            )
        ]
        if form.finetune_epochs:
            beside.append(per_cent("FT from scratch", "finetune_small_scratch", "top1.accuracy", "pmae finetune"))
        findings.tabulate("What any encoder must beat", beside, [base])
    findings.draw_scores(columns)
    findings.figures += [cell.result for cell in study.cells if cell.name.startswith("figure ")]
    findings.notes += [
        f"reconstructions are scored under {COMMON} masks of the run's ratio; under a run's own masks "
        f"(of {SHOWN} images, attention-guided ones again under random) other pixels are hidden, so that they compare "
        "with no other row",
        "normalised pixels: patches are un-normalised with the true patch's mean and deviation, which flatters PSNR",
    ]
    if "targets" in form.only and not form.teacher:
        findings.notes.append(f"no row '{TEACHER}': it needs a network with its weights; name one by --teacher")
    return findings


def _plain(row: str) -> str:
    return row.replace(" ", "_").replace("-", "_").lower()


if __name__ == "__main__":
    sys.exit(start("mae_ablations", str(__doc__), QUICK, FULL, plan, report))
