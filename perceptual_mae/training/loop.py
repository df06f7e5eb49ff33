"""A whole run: build, resume, train, report, evaluate, save."""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from perceptual_mae.config import build
from perceptual_mae.config.layers import flatten
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.draws import FixedMasks
from perceptual_mae.data.loading import TrainLoader, evaluation_batches
from perceptual_mae.data.subsets import random_subset
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.accelerator import make_accelerator
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.evaluation.reconstruction.scoring import score_training
from perceptual_mae.files import write_json
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder, Reconstruction
from perceptual_mae.progress import ProgressBar
from perceptual_mae.run import checkpoint, folder
from perceptual_mae.run.metrics_file import MetricsFile
from perceptual_mae.training import trainer_state
from perceptual_mae.training.build import as_main_process, build_trainer
from perceptual_mae.training.gan_monitor import GanMonitor
from perceptual_mae.training.initial_encoder import find_start
from perceptual_mae.training.messages import farewell, headline
from perceptual_mae.training.metrics import Meter, average, check_trackers, first_non_finite, nest
from perceptual_mae.training.signals import Interrupted, StopSignal
from perceptual_mae.visualization.image_grid import reconstruction_columns, save, sheet

log = logging.getLogger(__name__)

STOP_CHECK_EVERY = 10
"""Steps between which several processes agree on whether one of them was asked to stop."""


def pretrain(config: RunConfig, out: str | Path, *, fresh: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train the run that `config` describes in the folder `out` and return its summary.

    An unfinished run in `out` is resumed where it stopped, exactly. Raises UserError for what the user can mend and
    Interrupted when a signal asked the run to stop (it is saved then).
    """
    path = folder.claim(Path(out), config, fresh=fresh)
    try:
        run = Pretraining(config, path, quiet=quiet)
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise UserError(
            "out of memory before the first step: choose a smaller generator or smaller images"
        ) from failure
    try:
        return run.fit()
    except (UserError, Interrupted, OSError):
        raise
    except Exception as failure:
        if is_out_of_memory(failure):
            raise UserError(run.out_of_memory()) from failure
        log.exception("the run failed")
        raise
    finally:
        run.close()


def is_out_of_memory(failure: BaseException) -> bool:
    """Tell whether a device or the host ran out of memory (torch has no type of its own for the host's)."""
    return isinstance(failure, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(failure)


class Pretraining:
    """Everything a run holds while it goes on. Public parts: `trainer`, `timetable`, `path`, `step`."""

    def __init__(self, config: RunConfig, path: Path, *, quiet: bool = False) -> None:
        self.config, self.path = config, path
        check_trackers(config.tracking.trackers)
        self.accelerator = make_accelerator(config, training=True, path=path)
        self.train_data = config.data.build("train")
        self.held_out = open_held_out(config, limit=config.evaluation.limit)
        plan = build.build_plan(config.training, len(self.train_data))
        self.timetable = build.build_timetable(config.schedule, config.training.epochs, plan.steps_per_epoch)
        self.loader = TrainLoader(
            self.train_data,
            build.build_train_transform(config.data),
            plan,
            seed=config.training.seed,
            workers=config.data.workers,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            accumulation=config.training.accumulation,
        )
        start = find_start(config, self.checkpoints)
        self.origin = start.origin if start is not None else None
        self.trainer = build_trainer(config, self.accelerator, self.timetable, start)
        self.generator: MaskedAutoencoder = self.trainer.unwrapped_generator
        self.health = GanMonitor()
        self.meter = Meter()
        self.step = 0
        self.last_losses: dict[str, float] = {}
        self.has_warned_of_leaks = False
        self.log_handler: logging.Handler | None = None
        self.quiet = quiet or not self.accelerator.is_main_process

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def images_seen(self) -> int:
        return self.step * self.config.training.batch_size

    def fit(self) -> dict[str, Any]:
        """Train from the last checkpoint, or from the start, to the last epoch; return the summary."""
        self.accelerator.wait_for_everyone()  # all processes have found the folder as it was
        if self.accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            self.log_handler = folder.log_to_file(self.path)
        found = self.find_checkpoint()
        if found is not None:
            self.load(found)
        self.first_step = self.step
        if self.accelerator.is_main_process:
            started_from = self.origin.facts() if self.origin is not None else None
            # A resume that is refused writes nothing.
            folder.describe(self.path, self.config, str(self.accelerator.device), started_from)
            self.metrics = MetricsFile(self.path / "metrics.jsonl", self.step)
        tracking = self.config.tracking
        if tracking.trackers:
            flat = {key: str(value) for key, value in flatten(self.config.model_dump(mode="json"))}
            name = {"name": tracking.run_name or self.path.name}
            named = {tracker: name for tracker in tracking.trackers if tracker != "tensorboard"}
            self.accelerator.init_trackers(tracking.project, config=flat, init_kwargs=named)
        self.accelerator.wait_for_everyone()
        with StopSignal() as self.stop, ProgressBar(quiet=self.quiet, seconds_between_lines=None) as self.progress:
            self.progress("training", self.step, self.timetable.total_steps)
            self.greet(found)
            while self.step < self.timetable.total_steps:
                self.train_epoch()
            return self.finish()

    def train_epoch(self) -> None:
        """Take the remaining steps of the current epoch, then evaluate and save as often as the run wants."""
        epoch, first = self.timetable.progress(self.step).epoch, self.step % self.timetable.steps_per_epoch
        log_every = self.config.training.log_every
        steps = self.loader.epoch(epoch, first)
        started, waited, taken = time.perf_counter(), 0.0, 0
        while True:
            asked = time.perf_counter()
            batches = next(steps, None)
            waited += time.perf_counter() - asked
            if batches is None:
                break
            self.meter.add(self.step, self.trainer.step(batches, self.timetable.progress(self.step)))
            self.step, taken = self.step + 1, taken + 1
            self.progress("training", self.step, self.timetable.total_steps)
            is_last = self.step % self.timetable.steps_per_epoch == 0
            is_leaving = not is_last and self.is_stopping()
            if self.step % log_every == 0 or is_last or is_leaving:
                self.report(epoch, taken, started, waited)
                started, waited, taken = time.perf_counter(), 0.0, 0
            if is_leaving:
                self.save()
                self.leave()
        self.end_epoch(epoch)

    def end_epoch(self, epoch: int) -> None:
        """Save a checkpoint, evaluate and draw the sample grid where this epoch is due."""
        last = epoch == self.config.training.epochs
        every = self.config.evaluation.every
        is_leaving = not last and self.is_stopping()
        if last or is_leaving or epoch % self.config.training.checkpoint_every == 0:
            self.save()  # first: nothing that goes wrong below may cost what was learnt
        if every and epoch % every == 0 and not last:
            scores = self.evaluate()
            self.record({"epoch": epoch, "step": self.step, "evaluation": scores})
            self.tell(f"epoch {epoch}  {headline(scores)}")
        if last or (every and epoch % every == 0):
            self.draw(epoch)
        if is_leaving:
            self.leave()

    def report(self, epoch: int, taken: int, started: float, waited: float) -> None:
        """Fetch the scalars of the `taken` steps since `started`, write them down and look for trouble."""
        steps = self.meter.fetch(self.accelerator)  # waits for the device: only now the steps have taken their time
        seconds = time.perf_counter() - started
        if bad := first_non_finite(steps):
            raise UserError(self.non_finite(*bad))
        means = average(steps)
        speed = taken * self.config.training.batch_size / seconds
        progress = self.timetable.progress(self.step - 1)
        record: dict[str, Any] = {"epoch": epoch, "step": self.step, "images_seen": self.images_seen}
        rates = {"generator": self.trainer.learning_rate(progress.step)}
        if self.trainer.adversary is not None:
            rates["discriminator"] = self.trainer.adversary.learning_rate(progress.step)
        record |= nest(means) | {"active": self.trainer.objective.active(progress), "learning_rate": rates}
        record |= {"images_per_second": round(speed, 2), "data_wait": round(waited / seconds, 4)}
        self.record(record)
        self.last_losses = {
            name.removeprefix("weighted/"): round(value, 6)
            for name, value in means.items()
            if name.startswith("weighted/")
        }
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.last_losses.items())
        self.progress.status("training", f"epoch {epoch}", f"{losses}  {speed:.0f} images/s")
        for step, scalars in steps:
            for message in self.health.observe(scalars):
                self.warn(f"step {step}: {message}")
        augmentation = self.trainer.adversary.augmentation if self.trainer.adversary is not None else None
        if augmentation is not None and (leak := augmentation.controller.warning) and not self.has_warned_of_leaks:
            self.has_warned_of_leaks = True
            self.warn(leak)

    def record(self, record: dict[str, Any]) -> None:
        """Write one object to metrics.jsonl and hand its numbers to the trackers."""
        if self.accelerator.is_main_process:
            self.metrics.write(record)
        numbers = {key.replace(".", "/"): value for key, value in flatten(record) if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=record["step"])

    @torch.no_grad()
    def evaluate(self, *, baselines: bool = False) -> dict[str, Any]:
        """Score `evaluation.limit` held-out images under fixed masks, by averaged weights where the run keeps them."""
        scores = score_training(
            self.reconstruct,
            self.held_out,
            self.fixed_masks(),
            self.accelerator,
            channels=self.generator.channels,
            batch_size=self.config.evaluation.batch_size,
            patch_size=self.generator.patch_size,
            baselines=baselines,
        )
        return as_main_process(scores)

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> Reconstruction:
        generator = self.trainer.ema.module if self.trainer.ema is not None else self.generator
        reconstruction: Reconstruction = generator(images.to(self.generator.encoder.mean.dtype), mask)
        if not bool(reconstruction.pyramid[0].isfinite().all()):
            raise UserError(self.non_finite(self.step, "reconstruction"))
        return reconstruction

    def fixed_masks(self) -> FixedMasks:
        return build.build_fixed_masks(self.config.masking, self.generator.grid, self.config.evaluation.seed)

    @torch.no_grad()
    def draw(self, epoch: int) -> None:
        """Write the sample grid of this epoch: always the same held-out images under the same masks."""
        count = self.config.evaluation.grid_images
        if not count or not self.accelerator.is_main_process:
            return
        dataset, transform = self.held_out.dataset, self.held_out.transform
        indices = random_subset(len(dataset), count)
        batch = next(evaluation_batches(dataset, transform, batch_size=count, indices=indices))
        mask = self.fixed_masks()(batch)
        images = batch.to(self.accelerator.device).images
        page = sheet(reconstruction_columns(images, self.reconstruct(images, mask)))
        save(page, self.path / "images" / f"epoch_{epoch:04d}.png")

    def save(self) -> None:
        """Write a checkpoint and drop the ones that are no longer kept."""
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        tensors, facts = trainer_state.state_dict(self.trainer, self.accelerator)
        facts |= {"step": self.step, "images_seen": self.images_seen, "training_images": len(self.train_data)}
        facts |= {"alarms": self.health.state_dict(), "losses": self.last_losses}
        checkpoint.save(self.checkpoints, self.step, tensors, facts)
        training = self.config.training
        keep_steps = training.keep_every * self.timetable.steps_per_epoch if training.keep_every else None
        checkpoint.prune(self.checkpoints, self.step, training.keep_last, keep_steps)
        self.accelerator.wait_for_everyone()

    def find_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint, as the main process sees it: all must go on from the same one."""
        return as_main_process(checkpoint.newest(self.checkpoints) if self.accelerator.is_main_process else None)

    def load(self, path: Path) -> None:
        """Go back to a checkpoint, exactly."""
        facts = trainer_state.load_state_dict(self.trainer, self.accelerator, path)
        before, now = facts.get("training_images", len(self.train_data)), len(self.train_data)
        if now != before:
            raise UserError(
                f"data.root: there are {now} training images, but the run in {self.path} has been trained on {before}; "
                "give it the same images, or start over with --fresh"
            )
        self.health.load_state_dict(facts["alarms"])
        self.last_losses = facts["losses"]
        self.step = facts["step"]
        if self.step > self.timetable.total_steps:
            raise UserError(
                f"training.epochs: {self.config.training.epochs} epochs are {self.timetable.total_steps} steps, but "
                f"the run in {self.path} has taken {self.step} already; ask for more epochs, or start over with --fresh"
            )

    def finish(self) -> dict[str, Any]:
        """Score the held-out images beside the baselines and write summary.json."""
        scores = self.evaluate(baselines=True)
        summary = {
            **scores,
            "split": self.config.evaluation.split,
            "mask_seed": self.config.evaluation.seed,
            "ratio": build.final_ratio(self.config.masking),
            "uses_target_statistics": self.generator.norm_pix,
            "ema": self.trainer.ema is not None,
            "epochs": self.config.training.epochs,
            "steps": self.step,
            "images_seen": self.images_seen,
            "losses": self.last_losses,
            "unreadable_images": self.loader.num_unreadable,
        }
        if self.accelerator.is_main_process:
            if self.step > self.first_step:  # a finished run that is only scored again says nothing new
                self.record({"epoch": self.config.training.epochs, "step": self.step, "evaluation": scores})
            write_json(self.path / "summary.json", summary)
            self.tell(farewell(self.path, summary))
        return summary

    def greet(self, found: Path | None) -> None:
        """Say what is about to run: where, on what, with which effective batch and learning rate."""
        training, processes = self.config.training, self.accelerator.num_processes
        share = training.batch_size // (processes * training.accumulation)
        adversary = self.trainer.adversary
        path_length = adversary.path_length if adversary is not None else None
        rate, _ = build.generator_adam(self.config.optimizer, training.batch_size, path_length)
        self.tell(
            f"{self.path}: {self.timetable.total_steps} steps of {training.batch_size} images "
            f"({processes} {'process' if processes == 1 else 'processes'} x {training.accumulation} "
            f"{'micro-batch' if training.accumulation == 1 else 'micro-batches'} x {share} images) "
            f"on {self.accelerator.device}, precision {training.precision}, learning rate {rate:g}"
        )
        if found is not None:
            self.tell(f"resumed from {found} after {self.step} steps")
        elif self.origin is not None:
            self.tell(str(self.origin))
        for name in self.trainer.networks.untrained():
            self.warn(
                f"the loss network {name} has random weights: what it compares means little; set weights in "
                "losses.*.network to a file"
            )
        adversarial = self.trainer.objective.lines.get("adversarial")
        if adversarial is not None and isinstance(adversarial.weight, float) and adversarial.weight >= 1.0:
            self.warn(
                f"losses.adversarial.weight is a constant {adversarial.weight:g} (the paper's is 1): at small scale "
                "the generator then ignores its input; {balanced: 0.1, cap: 1.0} keeps it in check"
            )

    def tell(self, message: str) -> None:
        log.info(message)
        self.progress.log(message)

    def warn(self, message: str) -> None:
        log.warning(message)
        self.progress.log(f"warning: {message}")

    def is_stopping(self) -> bool:
        """Tell whether this run, or with several processes any of them, was asked to stop."""
        if self.accelerator.num_processes == 1:
            return self.stop.requested
        on_host = self.accelerator.device.type == "cpu"  # there a step is long, and asking costs next to nothing
        if not on_host and self.step % STOP_CHECK_EVERY and self.step % self.timetable.steps_per_epoch:
            return False
        requested = torch.tensor(float(self.stop.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(requested, reduction="sum").item())

    def leave(self) -> None:
        raise Interrupted(
            f"stopped and saved after step {self.step} in {self.path}; the same command goes on from there"
        )

    def non_finite(self, step: int, name: str) -> str:
        good = [path for path in checkpoint.checkpoints(self.checkpoints) if checkpoint.corruption(path) is None]
        kept = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was written yet"
        if good and checkpoint.step_of(good[-1]) == step:
            kept = f"{good[-1]} was written right before and is likely spoiled: remove it" + (
                f" to go on from {good[-2]}" if len(good) > 1 else " and start over"
            )
        return (
            f"{self.path}: the loss '{name}' stopped being finite at step {step}; {kept}; "
            "lower optimizer.lr or set optimizer.clip_norm, or train with training.precision=no"
        )

    def out_of_memory(self) -> str:
        training = self.config.training
        return (
            f"out of memory with training.batch_size={training.batch_size} in training.accumulation="
            f"{training.accumulation} micro-batches; try training.accumulation={training.accumulation * 2} "
            "(same result, half the memory) or a smaller training.batch_size"
        )

    def close(self) -> None:
        """End the loader's workers and the trackers, and let go of log.txt."""
        self.loader.close()
        self.accelerator.end_training()
        if self.log_handler is not None:
            logging.getLogger("perceptual_mae").removeHandler(self.log_handler)
            self.log_handler.close()
