"""What a pre-trained encoder is worth for segmentation and detection, on a few hundred images of each.

    uv run python scripts/studies/transfer.py --quick --root DATA
    uv run python scripts/studies/transfer.py --root DATA

DATA holds camvid/ (CamVid's layout), coco/ (train, val and their instances_*.json) and any folders of photographs. Each
method pre-trains one encoder on their training images without labels, which are linked into a folder next to --out; it
is then trained with UperNet and with Mask R-CNN, and so are the same network from scratch and the heads on a random,
frozen encoder. Seeds are those of the transfer.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from budget import at_the_end
from findings import Findings, column, pair_by_seed
from perceptual_mae.errors import UserError
from perceptual_mae.report.run_records import read_run_record
from perceptual_mae.report.seed_groups import Group
from perceptual_mae.run.run import read_object
from starting import option, start
from study import Cell, Study, Trained

RECIPES = {"segment": "camvid", "detect": "coco_subset"}
FOLDERS = {"segment": "camvid", "detect": "coco"}
LABELLED = {"camvid": "train", "coco": "train"}
"""Of these folders the images of one split are pre-trained on; of every other all but those below test/."""
ENDINGS = (".jpg", ".jpeg", ".png")
NETWORK = ("data.image_size=128", "generator.patch_size=8")
"""Street scenes of 180 pixels and less have few patches of 16."""
BASELINES = {"scratch": ("--from-scratch",), "random": ("--from-scratch", "--freeze")}


@dataclass(frozen=True)
class Form:
    """How large the study is."""

    methods: tuple[str, ...] = option(("mse", "ms_ssim_l1", "recommended"), "methods that pre-train an encoder each")
    tasks: tuple[str, ...] = option(tuple(RECIPES), "tasks")
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds of each transfer")
    epochs: int = option(100, "epochs of pre-training")
    batch: int = option(64, "images of a step of pre-training")
    steps: int = option(800, "steps of each transfer")
    images: int = option(0, "annotated images for training, 0: all")
    test_images: int = option(0, "annotated images for scores, 0: all")


FULL = Form()
QUICK = Form(methods=("mse",), seeds=(0,), epochs=1, steps=4, images=8, test_images=4)


def plan(form: Form, out: Path, overrides: Sequence[str]) -> Study:
    """Return the cells: an encoder of each method, then every task with each, from scratch, and on a random one."""
    root = root_of(overrides)
    if unknown := [task for task in form.tasks if task not in RECIPES]:
        raise UserError(f"--tasks: there is no {', '.join(unknown)}; choose from: {', '.join(RECIPES)}")
    images = gather(root, out.with_name(f"{out.name}_images"))
    others = [each for each in overrides if not each.startswith("data.root=")]
    study = Study("transfer", "Dense transfer on a few hundred images", out, (*others, f"data.root={images}"))
    words = [f"training.epochs={form.epochs}", f"training.batch_size={form.batch}", *at_the_end(1_000)]
    words.append("evaluation.probe_images=0")  # folders are no classes
    for method in form.methods:
        run = study.pretrain(method, ["image_folder", method, *NETWORK, *words], name=method, seed=0, kind=method)
        for task in form.tasks:
            transfer(study, method, run, task, root, form)
    shape = study.rows[form.methods[0]][0]
    for name, options in BASELINES.items():
        for task in form.tasks:
            transfer(study, name, shape, task, root, form, *options)
    return study


def root_of(overrides: Sequence[str]) -> Path:
    """Return the folder that --root names. Raises UserError where none is, or where it lacks a data set."""
    roots = [each.partition("=")[2] for each in overrides if each.startswith("data.root=")]
    if not roots:
        raise UserError(f"--root: names no folder; give one that holds {' and '.join(LABELLED)}")
    root = Path(roots[-1])
    if missing := [name for name in LABELLED if not (root / name).is_dir()]:
        raise UserError(f"--root: {root} has no folder {missing[0]}; it holds {' and '.join(LABELLED)}")
    return root


def gather(root: Path, out: Path) -> Path:
    """Link the images that may be pre-trained on into one folder, by their places below root, and return it."""
    for folder in sorted(each for each in root.iterdir() if each.is_dir()):
        inside = folder / LABELLED[folder.name] if folder.name in LABELLED else folder
        for image in sorted(inside.rglob("*")):
            place = image.relative_to(root)
            if image.suffix.lower() not in ENDINGS or "test" in place.parts or (out / place).exists():
                continue
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(image, out / place)
            except OSError:  # another disk
                shutil.copyfile(image, out / place)
    return out


def transfer(study: Study, row: str, run: Trained, task: str, root: Path, form: Form, *options: str) -> None:
    """Add a task's trainings with a run's encoder, one a seed."""
    schedule = (f"schedule.steps={form.steps}", f"schedule.warmup_steps={max(1, form.steps // 10)}")
    limits = [("--limit", form.images), ("--test-limit", form.test_images)]
    given = [word for flag, count in limits if count for word in (flag, str(count))]
    for seed in form.seeds:
        folder = folder_of(study, row, task, seed)
        # The name that the command gives its scores says what was left out and what was not loaded.
        flags = [{"--from-scratch": "scratch", "--freeze": "frozen"}[each] for each in options]
        limited = [str(count) for _, count in limits if count]
        result = folder / ("_".join([task, RECIPES[task], *flags, *limited]) + ".json")
        words = (task, str(run.path), RECIPES[task], *schedule, *options, *given)
        words = (*words, "--root", str(root / FOLDERS[task]), "--seeds", str(seed), "--out", str(folder))
        kind = f"{task} {' '.join(flags)}".strip()
        study.cells.append(Cell(f"{row}_s{seed}: {task}", words, result, kind, form.steps, (run.summary,)))


def folder_of(study: Study, row: str, task: str, seed: int) -> Path:
    return study.out / "transfers" / f"{row}_s{seed}" / task


def report(study: Study, form: Form) -> Findings:
    """Return the table of both tasks, each row less training from scratch, and pages of predictions."""
    findings = Findings(study, read_transfers(study, form))
    columns = [
        column("mIoU, %", "segment", "miou.mean", scale=100, command="pmae segment"),
        column("pixel accuracy, %", "segment", "aacc.mean", scale=100, command="pmae segment"),
        column("class accuracy, %", "segment", "macc.mean", scale=100, command="pmae segment"),
        column("box AP, %", "detect", "box_ap.mean", scale=100, command="pmae detect"),
        column("box AP50, %", "detect", "box_ap50.mean", scale=100, command="pmae detect"),
        column("mask AP, %", "detect", "mask_ap.mean", scale=100, command="pmae detect"),
        column("mask AP50, %", "detect", "mask_ap50.mean", scale=100, command="pmae detect"),
    ]
    columns = [each for each in columns if each.command.split()[1] in form.tasks]
    notes = [f"after {form.steps} steps of each task; encoders after {form.epochs} epochs; seeds are those of the task"]
    findings.tabulate("Encoders", columns, notes=notes)
    scratch = findings.find("scratch")
    if scratch is not None:
        others = [group for group in findings.groups if group is not scratch]
        findings.tables.append(pair_by_seed(scratch, others, columns))
    findings.draw_scores(columns)
    pages = [folder_of(study, row, task, form.seeds[0]) for row in rows_of(form) for task in form.tasks]
    findings.figures += [page for folder in pages for page in sorted(folder.glob("*.png"))]
    return findings


def rows_of(form: Form) -> list[str]:
    return [*form.methods, *BASELINES]


def read_transfers(study: Study, form: Form) -> list[Group]:
    """Return the rows that have scores: for each seed the record of the encoder's run, with the tasks' scores."""
    groups = []
    for row in rows_of(form):
        run = study.rows.get(row, study.rows[form.methods[0]])[0]
        records = []
        for seed in form.seeds:
            name = f"{row}_s{seed}"
            results = {cell.words[0]: cell.result for cell in study.cells if cell.name.startswith(f"{name}: ")}
            scores = {task: found for task, file in results.items() if (found := read_object(file)) is not None}
            if scores:
                record = read_run_record(run.path, name)
                training = record.config.training.model_copy(update={"seed": seed})
                config = record.config.model_copy(update={"training": training})
                records.append(replace(record, name=name, config=config, scores=scores))
        if records:
            groups.append(Group(records, None, row))
    return groups


def main(words: Sequence[str] | None = None) -> int:
    """Run the study."""
    return start("transfer", str(__doc__), QUICK, FULL, plan, report, words)


if __name__ == "__main__":
    sys.exit(main())
