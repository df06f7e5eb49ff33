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
from perceptual_mae.evaluation.open_run import make_accelerator
from perceptual_mae.evaluation.processes import as_main_process, most_urgent
from perceptual_mae.evaluation.reconstruction.data import open_held_out
from perceptual_mae.evaluation.reconstruction.scoring import score_training
from perceptual_mae.evaluation.representation.features import pool
from perceptual_mae.evaluation.representation.online import open_online, score_online
from perceptual_mae.files import write_json
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder, Reconstruction
from perceptual_mae.progress import ProgressBar
from perceptual_mae.run import checkpoint, folder
from perceptual_mae.run.metrics_file import MetricsFile
from perceptual_mae.run.signals import Interrupted, StopSignal
from perceptual_mae.training import messages, trainer_state
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.gan_monitor import GanMonitor
from perceptual_mae.training.image_check import check_run_images
from perceptual_mae.training.initial_weights import find_start
from perceptual_mae.training.memory import check_memory
from perceptual_mae.training.metrics import Meter, average, check_trackers, first_non_finite, nest
from perceptual_mae.visualization.image_grid import reconstruction_columns, save, sheet

logger = logging.getLogger(__name__)


def pretrain(config: RunConfig, out: str | Path, *, fresh: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train the run that `config` describes in the folder `out` and return its summary.

    An unfinished run in `out` is resumed where it stopped, exactly. Raises UserError for what the user can fix and
    Interrupted when a signal asked the run to stop (it is saved then).
    """
    check_memory(config)
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
            raise UserError(messages.out_of_memory(config.training)) from failure
        logger.exception("the run failed")
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
        self.representation_data = open_online(config, self.train_data, self.held_out)
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
        self.monitor = GanMonitor()
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
        self.accelerator.wait_for_everyone()  # all processes have read the folder as it was
        if self.accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            self.log_handler = folder.log_to_file(self.path)
        resumed_from = self.find_checkpoint()
        if resumed_from is not None:
            self.load(resumed_from)
        self.first_step = self.step
        if self.accelerator.is_main_process:
            started_from = self.origin.metadata() if self.origin is not None else None
            # A resume that is refused writes nothing.
            device, precision = str(self.accelerator.device), self.accelerator.mixed_precision
            folder.describe(self.path, self.config, device, precision, started_from)
            self.metrics = MetricsFile(self.path / "metrics.jsonl", self.step)
        tracking = self.config.tracking
        if tracking.trackers:
            flat = {key: str(value) for key, value in flatten(self.config.model_dump(mode="json"))}
            name = {"name": tracking.run_name or self.path.name}
            options = {tracker: name for tracker in tracking.trackers if tracker != "tensorboard"}
            self.accelerator.init_trackers(tracking.project, config=flat, init_kwargs=options)
        self.accelerator.wait_for_everyone()
        with (
            StopSignal() as self.stop_signal,
            ProgressBar(quiet=self.quiet, seconds_between_lines=None) as self.progress,
        ):
            self.progress("training", self.step, self.timetable.total_steps)
            self.log_header(resumed_from)
            images = (self.loader, self.train_data, self.held_out, self.representation_data)
            check_run_images(self.path, *images, self.progress, self.log, self.warn)
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
            is_stopping = not is_last and self.asked_to_stop()
            if self.step % log_every == 0 or is_last or is_stopping:
                self.report(epoch, taken, started, waited)
                started, waited, taken = time.perf_counter(), 0.0, 0
            if is_stopping:
                self.save()
                raise Interrupted(messages.stopped(self.path, self.step))
        self.end_epoch(epoch)

    def end_epoch(self, epoch: int) -> None:
        """Save a checkpoint, evaluate and draw the sample grid where this epoch is due."""
        last = epoch == self.config.training.epochs
        every = self.config.evaluation.every
        is_stopping = not last and self.asked_to_stop()
        if last or is_stopping or epoch % self.config.training.checkpoint_every == 0:
            self.save()  # first: nothing that goes wrong below may cost what was learned
        if every and epoch % every == 0 and not last:
            scores = self.evaluate()
            self.record({"epoch": epoch, "step": self.step, "evaluation": scores})
            self.log(f"epoch {epoch}  {messages.headline(scores)}")
        if last or (every and epoch % every == 0):
            self.draw(epoch)
        if is_stopping:
            raise Interrupted(messages.stopped(self.path, self.step))

    def report(self, epoch: int, taken: int, started: float, waited: float) -> None:
        """Fetch the scalars of the `taken` steps since `started`, record them and check for trouble."""
        steps = self.meter.fetch(self.accelerator)  # waits for the device: only now the steps have taken their time
        seconds = time.perf_counter() - started
        if bad := first_non_finite(steps):
            raise UserError(messages.non_finite(self.path, self.checkpoints, *bad))
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
            for message in self.monitor.observe(scalars):
                self.warn(f"step {step}: {message}")
        augmentation = self.trainer.adversary.augmentation if self.trainer.adversary is not None else None
        controller = augmentation.controller if augmentation is not None else None
        if controller is not None and (leak := controller.warning) and not self.has_warned_of_leaks:
            self.has_warned_of_leaks = True
            self.warn(leak)

    def record(self, record: dict[str, Any]) -> None:
        """Write one object to metrics.jsonl and hand its numbers to the trackers."""
        if self.accelerator.is_main_process:
            self.metrics.write(record)
        numbers = {key.replace(".", "/"): value for key, value in flatten(record) if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=record["step"])

    def evaluate(self, *, baselines: bool = False) -> dict[str, Any]:
        """Score `evaluation.limit` held-out images, by averaged weights where the run keeps them.

        Reconstructions are made under fixed masks; the representation is scored on whole images.
        """
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
        scores["representation"] = score_online(
            self.encode, self.representation_data, self.accelerator, batch_size=self.config.evaluation.batch_size
        )
        return as_main_process(scores)

    @property
    def scored_generator(self) -> MaskedAutoencoder:
        """The generator with averaged weights, where the run keeps them."""
        scored = self.trainer.ema.module if self.trainer.ema is not None else self.generator
        assert isinstance(scored, MaskedAutoencoder)
        return scored

    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor) -> Reconstruction:
        reconstruction: Reconstruction = self.scored_generator(images.to(self.generator.encoder.mean.dtype), mask)
        self.check_finite(reconstruction.pyramid[0], "reconstruction")
        return reconstruction

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the mean patch token (B, D) of whole images (B, C, H, W) in [0, 1]."""
        mean = pool(self.scored_generator.encoder(images.to(self.generator.encoder.mean.dtype)))["mean"]
        self.check_finite(mean, "features")
        return {"mean": mean}

    def check_finite(self, values: torch.Tensor, name: str) -> None:
        if not bool(values.isfinite().all()):
            raise UserError(messages.non_finite(self.path, self.checkpoints, self.step, name))

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
        """Write a checkpoint and delete those that need not be kept."""
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        tensors, metadata = trainer_state.state_dict(self.trainer, self.accelerator)
        metadata |= {"step": self.step, "images_seen": self.images_seen, "training_images": len(self.train_data)}
        metadata |= {"alarms": self.monitor.state_dict(), "losses": self.last_losses}
        checkpoint.save(self.checkpoints, self.step, tensors, metadata)
        training = self.config.training
        keep_steps = training.keep_every * self.timetable.steps_per_epoch if training.keep_every else None
        checkpoint.prune(self.checkpoints, self.step, training.keep_last, keep_steps)
        self.accelerator.wait_for_everyone()

    def find_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint, as the main process sees it: all must go on from the same one."""
        return as_main_process(checkpoint.newest(self.checkpoints) if self.accelerator.is_main_process else None)

    def load(self, path: Path) -> None:
        """Go back to a checkpoint, exactly."""
        metadata = trainer_state.load_state_dict(self.trainer, self.accelerator, path)
        before, now = metadata.get("training_images", len(self.train_data)), len(self.train_data)
        if now != before:
            raise UserError(
                f"data.root: there are {now} training images, but the run in {self.path} has been trained on {before}; "
                "give it the same images, or start over with --fresh"
            )
        self.monitor.load_state_dict(metadata["alarms"])
        self.last_losses = metadata["losses"]
        self.step = metadata["step"]
        if self.step > self.timetable.total_steps:
            raise UserError(
                f"training.epochs: {self.config.training.epochs} epochs are {self.timetable.total_steps} steps, but "
                f"the run in {self.path} has taken {self.step} already; ask for more epochs, or start over with --fresh"
            )

    def finish(self) -> dict[str, Any]:
        """Score the held-out images, and the baselines on them, and write summary.json."""
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
            "unreadable_images": len(self.loader.unreadable),
        }
        if self.accelerator.is_main_process:
            if self.step > self.first_step:  # a finished run that is only scored again says nothing new
                self.record({"epoch": self.config.training.epochs, "step": self.step, "evaluation": scores})
            write_json(self.path / "summary.json", summary)
            self.log(messages.final_message(self.path, summary))
        return summary

    def log_header(self, resumed_from: Path | None) -> None:
        """Log what is about to run, where it goes on from, and what in it is known to go wrong."""
        adversary = self.trainer.adversary
        path_length = adversary.path_length if adversary is not None else None
        rate, _ = build.generator_adam(self.config.optimizer, self.config.training.batch_size, path_length)
        self.log(
            messages.header(
                self.path,
                self.timetable.total_steps,
                self.config.training,
                processes=self.accelerator.num_processes,
                device=str(self.accelerator.device),
                precision=self.accelerator.mixed_precision,
                learning_rate=rate,
            )
        )
        if resumed_from is not None:
            self.log(f"resumed from {resumed_from} after {self.step} steps")
        elif self.origin is not None:
            self.log(str(self.origin))
        for warning in messages.warnings_of(self.trainer):
            self.warn(warning)

    def log(self, message: str) -> None:
        logger.info(message)
        self.progress.log(message)

    def warn(self, message: str) -> None:
        logger.warning(message)
        self.progress.log(f"warning: {message}")

    def asked_to_stop(self) -> bool:
        """Tell whether this run, or with several processes any of them, was asked to stop."""
        request, is_last = int(self.stop_signal.requested), self.step % self.timetable.steps_per_epoch == 0
        return bool(most_urgent(request, self.accelerator, self.step, always=is_last))

    def close(self) -> None:
        """End the loader's workers and the trackers, and let go of log.txt."""
        self.loader.close()
        self.accelerator.end_training()
        if self.log_handler is not None:
            logging.getLogger("perceptual_mae").removeHandler(self.log_handler)
            self.log_handler.close()
