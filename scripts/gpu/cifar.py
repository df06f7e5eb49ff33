"""CIFAR-10: the same number of images for every method, as many as the time allows; scores, probe and a picture."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from gpu.correctness import device_name
from gpu.form import Form, words_of
from gpu.speed import release
from perceptual_mae.benchmark.measure import measure
from perceptual_mae.cli import main as pmae
from perceptual_mae.config.parsing import load_config
from perceptual_mae.files import write_atomically
from perceptual_mae.training.loop import pretrain

SKIPS_AND_HEADS = ("generator.skips=true", "generator.rgb_heads=true", "losses.l1.low_levels=0.1")
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mse": ("mse", ()),
    "l1_msg_mae": ("l1", SKIPS_AND_HEADS),
    "ms_ssim_l1": ("ms_ssim_l1", ()),
    "ls_gan_p": ("ls_gan_p", ()),
    "msg_gan_p": ("msg_gan_p", ()),
    "stylegan2_ada_p": ("stylegan2_ada_p", ("discriminator.channel_base=1024",)),
    "ssim_gan_p": ("ssim_gan_p", ()),
    "recommended": ("recommended", ()),
}
"""Names, methods and what they add; `l1_msg_mae` is the control of the pyramid methods."""
BATCH = 512
RATE_FACTOR = 2.0
"""The root of 512 over the recipe's batch of 128."""
SHARE_OF_TRAINING = 0.75
"""Of the time that is left; scoring and starting have the rest."""


def train_all(form: Form) -> dict[str, Any]:
    """Return scores by run; runs that are there go on, and those that are finished are only scored."""
    words = {name: run_words(form, name) for name in RUNS}
    images = planned_images(form, words)
    folder = form.out.with_name(f"{form.out.name}_cifar")  # checkpoints are too large for the results' folder
    results: dict[str, Any] = {"device": device_name(), "torch": torch.__version__, "images": images, "runs": {}}
    runs = {name: folder / name for name in RUNS}
    for name, run in runs.items():
        begun = time.monotonic()
        pretrain(load_config([*words[name], *budget(form, images)]), run, quiet=True)
        seconds = time.monotonic() - begun
        results["runs"][name] = {"seconds": seconds, "images_per_second": images / seconds, **scores(form, run)}
        write_atomically(form.out / "cifar.partial.json", json.dumps(results, indent=2) + "\n")
        print(f"  {name}: {seconds:.0f} s, {results['runs'][name]['evaluate']}", flush=True)
        release()
    draw(list(runs.values()), form.out / "cifar.png")
    return results


def run_words(form: Form, name: str) -> list[str]:
    """Return a run's words but for its length: batch size, rate and data."""
    method, added = RUNS[name]
    words = words_of("cifar10", method, toy=form.toy, more=added)
    if form.root is None:
        words += ["data.kind=shapes", "data.num_images=512", "data.size=32", "data.root=null"]
    else:
        words += [f"data.root={form.root}", f"data.workers={0 if form.toy else 8}"]
    config = load_config(words)
    rates = [f"optimizer.lr={RATE_FACTOR * (config.optimizer.lr or 0)}"]
    if config.optimizer.discriminator.lr is not None:
        rates.append(f"optimizer.discriminator.lr={RATE_FACTOR * config.optimizer.discriminator.lr}")
    return [*words, *(() if form.toy else rates), f"training.batch_size={16 if form.toy else BATCH}"]


def planned_images(form: Form, words: dict[str, list[str]]) -> int:
    """Return how many images each run sees, of whole epochs, by a measurement of a step; a plan that is there stays."""
    plan = form.out / "cifar_plan.json"
    if plan.exists():
        return int(json.loads(plan.read_text())["images"])
    if form.toy:
        images = 2 * epoch_images(form)
    else:
        seconds = [seconds_per_image(line) for line in words.values()]
        epochs = SHARE_OF_TRAINING * form.seconds_left / (sum(seconds) * epoch_images(form))
        images = 2 * max(1, math.floor(epochs / 2)) * epoch_images(form)  # an even number: half have all terms
    write_atomically(plan, json.dumps({"images": images}) + "\n")
    return images


def seconds_per_image(words: list[str]) -> float:
    candidates, _ = measure([("", load_config(words))], rounds=2, warmup=2)
    seconds = min(candidates[0].mean_seconds()) / candidates[0].batch_size
    release()
    return seconds


def epoch_images(form: Form) -> int:
    return 64 if form.toy else 50_000 // BATCH * BATCH


def budget(form: Form, images: int) -> list[str]:
    """Return the words of a run's length; it is scored once, by the commands."""
    each = epoch_images(form)
    words = [f"training.epochs={images // each}", f"training.epoch_images={each}", "training.checkpoint_every=2"]
    return [*words, "evaluation.every=0", f"evaluation.limit={8 if form.toy else 500}", "evaluation.probe_images=0"]


def scores(form: Form, run: Path) -> dict[str, Any]:
    """Score a run by the commands that anybody would type."""
    limit = "16" if form.toy else "10000"
    metrics = ["--metrics", "cheap"]
    if form.resnet is not None:
        metrics = ["--metrics", "cheap,fid,kid", "--features", f"cifar_resnet:{form.resnet},name=resnet20"]
    commands = {
        "evaluate": [*metrics, "--limit", limit],
        "probe": ["--limit", limit, "--test-limit", limit, "--seeds", "0"],
        "knn": ["--limit", limit, "--test-limit", limit, "--neighbours", "5" if form.toy else "20"],
    }
    found: dict[str, Any] = {}
    for command, options in commands.items():
        file = run / "evaluation" / f"gpu_{command}.json"
        code = 0 if file.exists() else pmae([command, str(run), *options, "--out", str(file)])
        found[command] = json.loads(file.read_text())["scores"] if code == 0 else {"problem": f"exit code {code}"}
    return found


def draw(runs: list[Path], picture: Path) -> None:
    """Draw the same held-out images under all runs."""
    others = [word for run in runs[1:] for word in ("--beside", str(run))]
    pmae(["visualize", str(runs[0]), *others, "--view", "composite", "--count", "8", "--out", str(picture)])
