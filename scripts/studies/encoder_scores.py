"""Linear probe and fine-tuning of a study's encoders, beside what any encoder must beat."""

from typing import Protocol

from budget import data_of, refuse_more_labels
from findings import per_cent
from perceptual_mae.report.columns import Column
from study import Study, Trained

PROBE, TUNED, SCRATCH = "probe_cached", "finetune_small", "finetune_small_scratch"
OF_ONE_SEED = ""
"""No command is named for runs whose probe has no baselines beside it: one seed's are enough."""


class Labels(Protocol):
    """What of a study's form says how encoders are scored."""

    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def layer(self) -> str: ...
    @property
    def images(self) -> int: ...
    @property
    def labels(self) -> int: ...
    @property
    def finetune_labels(self) -> int: ...
    @property
    def finetune_epochs(self) -> int: ...
    @property
    def test_images(self) -> int: ...


def check_labels(form: Labels, *overrides: str) -> None:
    """Raise UserError where more labels are asked for than the images that are kept have."""
    if not whole_labelled_part(form.layer, *overrides):
        tuning = {"--finetune-labels": form.finetune_labels} if form.finetune_epochs else {}
        refuse_more_labels(form.images, {"--labels": form.labels, **tuning})


def score_encoder(study: Study, run: Trained, form: Labels, *, is_base: bool) -> None:
    """Probe and fine-tune a run; beside the base, training from scratch, once a random encoder and raw pixels too."""
    shared = (*whole_labelled_part(form.layer, *study.overrides), "--test-limit", str(form.test_images))
    has_baselines = is_base and run.seed == form.seeds[0]
    probe = (*shared, "--limit", str(form.labels), "--seeds", "0", *(("--baselines",) if has_baselines else ()))
    images = (form.labels + form.test_images) * (1 + has_baselines)
    study.score(run, "probe", *probe, stem=PROBE, images=images)
    if form.finetune_epochs:
        limits = (*shared, "--limit", str(form.finetune_labels), "--seeds", str(run.seed))
        tune = (*limits, "--recipe", "small", "--epochs", str(form.finetune_epochs))
        images = form.finetune_epochs * form.finetune_labels
        study.score(run, "finetune", *tune, stem=TUNED, images=images)
        if is_base:
            study.score(run, "finetune", *tune, "--from-scratch", stem=SCRATCH, images=images)


def whole_labelled_part(layer: str, *overrides: str) -> tuple[str, ...]:
    """Return the override for sets with a labelled part of their own: images held back from training are not in it."""
    return ("data.val_images=0",) if "labelled" in data_of(layer, *overrides).option_fields else ()


def accuracy_columns(form: Labels) -> list[Column]:
    """Return the columns of what `score_encoder` leaves: top-1 in per cent."""
    columns = [
        per_cent("LP, class token", PROBE, "encoder.class.accuracy", "pmae probe"),
        per_cent("LP, mean pool", PROBE, "encoder.mean.accuracy", "pmae probe"),
    ]
    return [*columns, per_cent("FT", TUNED, "top1.accuracy", "pmae finetune")] if form.finetune_epochs else columns


def baseline_columns(form: Labels) -> list[Column]:
    """Return the columns of what stands beside the base."""
    columns = [
        per_cent(f"LP of {subject}", PROBE, f"{place}.accuracy", OF_ONE_SEED)
        for subject, place in (
            ("a random encoder, class token", "random encoder.class"),
            ("a random encoder, mean pool", "random encoder.mean"),
            ("raw pixels", "raw pixels.pixels"),
        )
    ]
    scratch = per_cent("FT from scratch", SCRATCH, "top1.accuracy", "pmae finetune")
    return [*columns, scratch] if form.finetune_epochs else columns
