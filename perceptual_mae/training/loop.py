"""A whole run: build, resume, train, report, evaluate, save."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from perceptual_mae.config import build
from perceptual_mae.config.layers import flatten
from perceptual_mae.config.parsing import RunConfig
from perceptual_mae.data.dataset import files_sha256
from perceptual_mae.data.loading import TrainLoader
from perceptual_mae.data.unreadable import TooManyUnreadableError
from perceptual_mae.data.workers import NoSharedMemoryError
from perceptual_mae.errors import LostProcessError, UserError
from perceptual_mae.evaluation.open_run import in_main_process, make_accelerator
from perceptual_mae.evaluation.processes import as_main_process
from perceptual_mae.files import naming, write_json
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.progress import ProgressBar
from perceptual_mae.run import checkpoint, folder
from perceptual_mae.run.checkpoint_writer import CheckpointWriter
from perceptual_mae.run.history import add_changes, add_to_environment
from perceptual_mae.run.lock import FolderLock
from perceptual_mae.run.metrics_file import MetricsFile
from perceptual_mae.run.signals import Interrupted, StopSignal
from perceptual_mae.training import messages, peers, reporting, resume, rollback, trainer_state
from perceptual_mae.training.branching import Branch
from perceptual_mae.training.build import build_trainer
from perceptual_mae.training.divergence import DivergedError, Divergence, explain
from perceptual_mae.training.gan_monitor import GanMonitor
from perceptual_mae.training.held_out import HeldOut
from perceptual_mae.training.image_check import UnreadableFiles, check_run_images
from perceptual_mae.training.initial_discriminator import find_discriminator_start
from perceptual_mae.training.initial_weights import find_start
from perceptual_mae.training.memory import check_memory
from perceptual_mae.training.metrics import SKIPPED, Meter, are_finite, average, check_trackers, nest
from perceptual_mae.training.save_points import SavePoint, SavePoints, save_run, saved_error
from perceptual_mae.visualization.image_grid import save

logger = logging.getLogger(__name__)


def pretrain(
    config: RunConfig, out: str | Path, *, fresh: bool = False, quiet: bool = False, branch: Branch | None = None
) -> dict[str, Any]:
    """Train the run that `config` describes in the folder `out` and return its summary.

    branch: the checkpoint of another run that a new one goes on from; none: it starts at its first step. An unfinished
    run in `out` is resumed where it stopped, exactly. Raises UserError for what the user can fix and
    Interrupted when a signal asked the run to stop (it is saved then).
    """
    check_memory(config)
    path = folder.claim(Path(out), config, fresh=fresh)
    with naming(path), StopSignal(is_deferred=False) as stop_signal:
        try:
            run = Pretraining(config, path, stop_signal, quiet=quiet, branch=branch)
        except KeyboardInterrupt:
            raise Interrupted(messages.stopped_before(path)) from None
        except (MemoryError, RuntimeError) as failure:
            if peers.is_broken_connection(failure):
                raise LostProcessError(messages.lost_processes(path, None, [], [])) from failure
            if not messages.is_out_of_memory(failure):
                raise
            raise UserError(messages.OUT_OF_MEMORY_AT_THE_START) from failure
        try:
            return run.fit()
        except (UserError, Interrupted, OSError, LostProcessError):
            raise
        except Exception as failure:
            if messages.is_out_of_memory(failure):
                processes = run.accelerator.num_processes
                raise UserError(messages.out_of_memory(path, config.training, processes)) from failure
            if peers.is_broken_connection(failure):
                raise LostProcessError(run.loss_of(peers.lost_peers(run.peers))) from failure
            logger.exception("the run failed")
            raise
        finally:
            run.close()


class Pretraining:
    """Everything a run holds while it goes on. Public parts: `trainer`, `timetable`, `path`, `step`."""

    def __init__(
        self,
        config: RunConfig,
        path: Path,
        stop_signal: StopSignal | None = None,
        *,
        quiet: bool = False,
        branch: Branch | None = None,
    ) -> None:
        self.config, self.path, self.branch, self.stop_signal = config, path, branch, stop_signal or StopSignal()
        check_trackers(config.tracking.trackers)
        self.accelerator = make_accelerator(config, training=True, path=path)
        self.peers = peers.exchange_peers(self.accelerator)
        self.peer_monitor = peers.PeerMonitor(self.peers, self.loss_of)
        self.train_data = config.data.build("train")
        self.held_out = HeldOut(config, self.train_data)
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
            decode_on=self.accelerator.device if config.data.decode == "device" else None,
        )
        start = find_start(config, self.checkpoints) if branch is None else None
        self.origin = start.origin if start is not None else None
        self.discriminator_start = find_discriminator_start(config, self.checkpoints) if branch is None else None
        self.trainer = build_trainer(config, self.accelerator, self.timetable, start, self.discriminator_start)
        self.generator: MaskedAutoencoder = self.trainer.unwrapped_generator
        self.monitor, self.meter = GanMonitor(), Meter()
        self.divergence = Divergence(config.training.max_skips, config.training.rollback_lr)
        self.step, self.has_warned_of_leaks, self.lock = 0, False, FolderLock(path)
        self.last_losses: dict[str, float] = {}
        self.passed_over: dict[str, str] = {}
        self.images_sha256: str | None = None
        self.writer = CheckpointWriter()
        self.unreadable = UnreadableFiles(path, self.train_data)
        self.log_file: folder.LogFile | None = None
        self.quiet = quiet or not self.accelerator.is_main_process

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def images_seen(self) -> int:
        return self.step * self.config.training.batch_size

    def fit(self) -> dict[str, Any]:
        """Train from the last checkpoint, or from the start, to the last epoch; return the summary."""
        self.stop_signal.is_deferred = True
        self.accelerator.wait_for_everyone()  # all processes have read the folder as it was
        in_main_process(self.accelerator, self.enter_folder)
        resumed_from = self.find_checkpoint()
        self.images_sha256 = in_main_process(self.accelerator, lambda: files_sha256(self.train_data))
        if resumed_from is not None:
            self.load(resumed_from)
            self.branch = None
        elif self.branch is not None:
            self.start_from(self.branch)
        if self.accelerator.is_main_process:
            started_from = self.origin.metadata() if self.origin is not None else None
            add_changes(self.path, self.config, self.step)
            # A resume that is refused writes nothing.
            device, precision = str(self.accelerator.device), self.accelerator.mixed_precision
            folder.describe(self.path, self.config, device, precision, started_from, self.passed_over)
            if self.branch is not None:
                add_to_environment(self.path, "branched_from", self.branch.metadata())
            if self.discriminator_start is not None:
                add_to_environment(self.path, "discriminator_started_from", self.discriminator_start.metadata())
        reporting.start_trackers(self)
        self.accelerator.wait_for_everyone()
        self.save_points = SavePoints(self.accelerator, self.stop_signal, self.config.training.checkpoint_minutes)
        with ProgressBar(quiet=self.quiet, seconds_between_lines=None) as self.progress, self.peer_monitor:
            self.progress("training", self.step, self.timetable.total_steps)
            reporting.log_header(self, resumed_from)
            images = (self.loader, self.train_data, self.held_out.images, self.held_out.representation_data)
            check_run_images(self.path, *images, self.progress, self.log, self.warn, may_remove=resumed_from is None)
            if self.accelerator.is_main_process:
                self.checkpoints.mkdir(exist_ok=True)  # before any record: `folder.check_not_emptied`
                self.metrics = MetricsFile(self.path / "metrics.jsonl", self.step)
            if self.branch is not None:
                self.save()  # from here on it resumes as any run does
            try:
                self.complete_epoch()
                while self.step < self.timetable.total_steps:
                    try:
                        self.train_epoch()
                    except DivergedError as diverged:
                        rollback.roll_back(self, diverged)
                self.peer_monitor.stop()
                return self.finish()
            except (LostProcessError, NoSharedMemoryError, TooManyUnreadableError) as failure:  # of what reads images
                raise saved_error(self, failure) from failure

    def loss_of(self, ranks: list[int]) -> str:
        """Return the last line of a run that lost processes."""
        return messages.lost_processes(self.path, self.step, ranks, self.peers)

    def enter_folder(self) -> None:
        """Keep other trainers out of the run's folder, and begin to log there; UserError where another is in it."""
        self.lock.acquire()
        folder.claim(self.path, self.config)  # another may have trained here, and be gone, since this was asked first
        self.log_file = folder.LogFile(self.path)

    def train_epoch(self) -> None:
        """Take the remaining steps of the current epoch, then evaluate and save as often as the run wants."""
        epoch, first = self.timetable.progress(self.step).epoch, self.step % self.timetable.steps_per_epoch
        steps = self.loader.epoch(epoch, first, allow_excess=True)
        started, waited, taken = time.perf_counter(), 0.0, 0
        while True:
            asked = time.perf_counter()
            batches = next(steps, None)
            waited += time.perf_counter() - asked
            if batches is None:
                return
            scalars = self.trainer.step(batches, self.timetable.progress(self.step))
            flag = {SKIPPED: self.trainer.skipped} if self.accelerator.scaler is None else {}
            self.meter.add(self.step, scalars | flag)
            self.step, taken = self.step + 1, taken + 1
            self.progress("training", self.step, self.timetable.total_steps)
            is_last = self.step % self.timetable.steps_per_epoch == 0
            if self.step % self.config.training.log_every == 0 or is_last:
                self.report(epoch, taken, started, waited)
                started, waited, taken = time.perf_counter(), 0.0, 0
            due = self.save_points.after(self.step, is_last=is_last, refused=self.loader.refusal is not None)
            if is_last:
                self.end_epoch(epoch, due)
            elif due.save:
                self.save()
            if self.step == self.timetable.total_steps:
                continue
            if due.stop or due.refused:
                self.writer.wait()
            if due.stop:
                raise Interrupted(messages.stopped(self.path, self.step, due.stop))
            if due.refused:
                refusals = gather_object([self.loader.refusal])
                raise UserError(messages.too_many_unreadable(self.path, next(filter(None, refusals))))

    def end_epoch(self, epoch: int, due: SavePoint) -> None:
        """Save a checkpoint, evaluate and draw the sample grid where this epoch is due."""
        last = epoch == self.config.training.epochs
        if last or due.save or epoch % self.config.training.checkpoint_every == 0:
            self.save()  # first: nothing that goes wrong below may cost what was learned
        if self.is_scored(epoch) and not last:
            self.score(epoch)
        if last or self.is_scored(epoch):
            self.draw(epoch)

    def complete_epoch(self) -> None:
        """Make the scores and the picture of the epoch that a checkpoint ends, if the run was cut off before them.

        The scores of the last epoch are `finish`'s.
        """
        epoch, steps_after = divmod(self.step, self.timetable.steps_per_epoch)
        last = self.step == self.timetable.total_steps
        if not epoch or steps_after or not (last or self.is_scored(epoch)):
            return
        if not last and not self.has_scores():
            self.score(epoch)
        if not self.picture(epoch).exists():
            self.draw(epoch)

    def is_scored(self, epoch: int) -> bool:
        every = self.config.evaluation.every
        return bool(every) and epoch % every == 0

    def has_scores(self) -> bool:
        """Tell whether the scores after this step are recorded, as the main process knows."""
        return as_main_process(self.accelerator.is_main_process and self.metrics.has_scores(self.step))

    def score(self, epoch: int) -> None:
        """Evaluate and record the scores of an epoch."""
        scores = self.evaluate()
        self.record({"epoch": epoch, "step": self.step, "evaluation": scores})
        self.log(f"epoch {epoch}  {messages.headline(scores)}")

    def report(self, epoch: int, taken: int, started: float, waited: float) -> None:
        """Fetch the scalars of the `taken` steps since `started`, record them and check for trouble."""
        steps = self.meter.fetch(self.accelerator)  # waits for the device: only now the steps have taken their time
        seconds = time.perf_counter() - started
        skipped = rollback.check_divergence(self, steps)
        steps = [(step, scalars) for step, scalars in steps if step not in skipped]
        means = {name: mean for name, mean in average(steps).items() if name != SKIPPED}
        speed = taken * self.config.training.batch_size / seconds
        progress = self.timetable.progress(self.step - 1)
        record: dict[str, Any] = {"epoch": epoch, "step": self.step, "images_seen": self.images_seen}
        record |= {"skipped_steps": len(skipped)} if skipped else {}
        rates = reporting.learning_rates(self.trainer, progress.step)
        record |= nest(means) | {"active": self.trainer.objective.active(progress), "learning_rate": rates}
        record |= {"images_per_second": round(speed, 2), "data_wait": round(waited / seconds, 4)}
        self.record(record)
        self.last_losses = {
            name.removeprefix("weighted/"): round(value, 6)
            for name, value in means.items()
            if name.startswith("weighted/")
        } or self.last_losses
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.last_losses.items())
        self.progress.status("training", f"epoch {epoch}", f"{speed:.0f} images/s  {losses}")
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
        """Score the held-out images."""
        return self.held_out.score(self.trainer, self.accelerator, self.check_finite, baselines=baselines)

    def check_finite(self, values: torch.Tensor, name: str) -> None:
        if not are_finite([values]):  # of held-out images: the checkpoint of this step is spoiled
            self.writer.wait()
            raise UserError(explain(self.path, name, self.step, self.step - 1, self.config))

    def picture(self, epoch: int) -> Path:
        return self.path / "images" / f"epoch_{epoch:04d}.png"

    def draw(self, epoch: int) -> None:
        """Write the sample grid of this epoch."""
        if self.config.evaluation.grid_images and self.accelerator.is_main_process:
            save(self.held_out.grid(self.trainer, self.accelerator.device, self.check_finite), self.picture(epoch))

    def save(self) -> None:
        """Begin to write a checkpoint; raises DivergedError for spoiled weights."""
        save_run(self)

    def find_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint, as the main process sees it: all must go on from the same one."""
        groups = trainer_state.groups(self.trainer, self.accelerator)
        newest = in_main_process(self.accelerator, lambda: checkpoint.newest_whole(self.checkpoints, groups))
        path, self.passed_over = newest
        return path

    def load(self, path: Path) -> None:
        """Go back to a checkpoint, exactly."""
        metadata = trainer_state.load_state_dict(self.trainer, self.accelerator, path)
        in_main_process(
            self.accelerator, lambda: resume.check_images(self.path, metadata, self.train_data, self.images_sha256)
        )
        self.meter.pending = [(step, scalars) for step, scalars in metadata.get("pending", [])]
        self.take_up(metadata, metadata["step"])

    def start_from(self, branch: Branch) -> None:
        """Begin where another run's checkpoint was written, with all that this configuration can keep of it."""
        self.take_up(*branch.load(self.trainer, self.accelerator, self.config))

    def take_up(self, metadata: Mapping[str, Any], step: int) -> None:
        """Go on after `step` steps with what a checkpoint says of losses and alarms."""
        self.monitor.load_state_dict(metadata["alarms"])
        self.last_losses, self.step = metadata["losses"], step
        self.divergence.load_state_dict(metadata.get("divergence", {}))
        self.trainer.lr_scale = self.divergence.lr_scale
        resume.check_length(self.path, self.step, self.timetable.total_steps, self.config.training.epochs)

    def finish(self) -> dict[str, Any]:
        """Score the held-out images, and the baselines on them, and write summary.json."""
        self.writer.wait()
        scores = self.evaluate(baselines=True)
        summary = reporting.summary_of(self, scores)
        if self.accelerator.is_main_process:
            if not self.metrics.has_scores(self.step):  # a finished run that is only scored again says nothing new
                self.record({"epoch": self.config.training.epochs, "step": self.step, "evaluation": scores})
            write_json(self.path / "summary.json", summary)
            self.log(messages.final_message(self.path, summary))
        return summary

    def log(self, message: str) -> None:
        logger.info(message)
        self.progress.log(message)

    def warn(self, message: str) -> None:
        logger.warning(message)
        self.progress.log(f"warning: {message}")

    def close(self) -> None:
        """End the loader's workers and the trackers, and give the folder back once the last checkpoint is written."""
        try:
            self.writer.close()
            self.loader.close()
            self.accelerator.end_training()
        finally:
            if self.log_file is not None:
                self.log_file.close()
            self.lock.release()
