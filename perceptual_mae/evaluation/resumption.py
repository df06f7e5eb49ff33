"""Trainings of an evaluation that go on where a stopped call left them: fine-tuning and probes.

Such a command trains one network after the other, a seed each, and scores it. Until its result is written, checkpoints
next to the result hold what the finished trainings came to and the tensors of the one under way. Order, augmentation
and masks are functions of seed, epoch, step and image, so there is no random state to keep.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from perceptual_mae.config.layers import flatten
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.labelled_data import LabelledData
from perceptual_mae.evaluation.open_run import in_main_process
from perceptual_mae.evaluation.processes import most_urgent
from perceptual_mae.progress import OnProgress
from perceptual_mae.run import checkpoint
from perceptual_mae.run.lock import LOCK, FolderLock
from perceptual_mae.run.signals import Interrupted, StopSignal

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 30.0
"""The shortest time between two checkpoints of a training; its end is saved in any case."""
LARGEST_SHARE = 0.05
"""Of the time that saving may take: large networks are saved less often."""
KEEP_LAST = 2
"""The one before the last serves where the last is damaged."""
SAVE, STOP = 1, 2

Trained = Mapping[str, nn.Module | Optimizer]
"""What changes in a training by its name: each is a group of tensors of the checkpoint."""


class Checkpointing(Protocol):
    """What a training reports of its steps, and gets back after a stop; see `ResumableTrainings`."""

    @property
    def kept(self) -> Mapping[str, Any]: ...

    def load(self, trained: Trained) -> None: ...

    def after_step(self, step: int, total: int, trained: Trained, keep: Callable[[], dict[str, Any]]) -> None: ...

    def check_stop(self, place: str) -> None: ...


class NoCheckpoints:
    """Keeps nothing, has kept nothing and stops nothing."""

    kept: Mapping[str, Any] = MappingProxyType({})

    def load(self, trained: Trained) -> None:
        """Leave it as it is."""

    def after_step(self, step: int, total: int, trained: Trained, keep: Callable[[], dict[str, Any]]) -> None:
        """Do nothing."""

    def check_stop(self, place: str) -> None:
        """Go on."""


NO_CHECKPOINTS = NoCheckpoints()


@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints of an evaluation are, whether those of an earlier call are dropped, and what logs messages."""

    folder: Path
    fresh: bool = False
    log: Callable[[str], None] = logger.info

    @classmethod
    def of(cls, result: Path, *, fresh: bool = False, log: Callable[[str], None] = logger.info) -> "Checkpoints":
        """Return those next to the file that the result is written to."""
        return cls(result.with_suffix(".unfinished"), fresh, log)

    def exist(self) -> bool:
        """Tell whether there are any."""
        return bool(checkpoint.checkpoints(self.folder))

    def discard(self) -> None:
        """Delete the folder, unless another call has begun to go on from it."""
        with suppress(UserError), FolderLock(self.folder):
            self.empty()
        with suppress(OSError):
            self.folder.rmdir()

    def empty(self) -> None:
        """Delete all that is in the folder but its lock."""
        for path in list(self.folder.iterdir()):
            if path.name != LOCK:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


class ResumableTrainings:
    """The trainings of one command, each under a name: `results` has what came of those that are finished.

    settings: all that decides the results, as JSON; checkpoints of other settings are refused with UserError, and so is
    a folder that another process trains in. As a context it opens the folder and listens to SIGINT and SIGTERM; the
    training under way is then saved and Interrupted raised. Without `checkpoints` nothing is read, written or listened
    to. All processes make the same calls.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: Mapping[str, Any] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.accelerator, self.checkpoints = accelerator, checkpoints
        self.settings = json.loads(json.dumps(settings or {}))
        self.results: dict[str, Any] = {}
        self.name, self.step = "", 0
        self.kept: dict[str, Any] = {}
        self.has_saved = False
        self._has_unsaved_results = self._is_alone = False
        self._steps_before = 0
        self._source: Path | None = None
        self._under_way: dict[str, Any] = {}
        self._stop_signal = StopSignal()
        self._next_save = time.monotonic() + SECONDS_BETWEEN
        self._lock = FolderLock(checkpoints.folder) if checkpoints is not None else None

    def __enter__(self) -> "ResumableTrainings":
        if self.checkpoints is not None and self._lock is not None:
            in_main_process(self.accelerator, self._lock.acquire)
            try:
                self._open(self.checkpoints)
            except BaseException:
                self._release()
                raise
            self._stop_signal.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.checkpoints is not None:
            self._stop_signal.__exit__(kind, error, trace)
            self._release()

    def begin(self, name: str) -> dict[str, Any]:
        """Begin a training or go on with it: return what was kept of it, with its `step`; nothing where it is new.

        It is in `kept` until the next one begins.
        """
        self.name = name
        self.kept = self._under_way if self._under_way.get("name") == name else {}
        self.step = self.kept.get("step", 0)
        if self.kept and self.checkpoints is not None:
            self.checkpoints.log(f"{name} goes on after step {self.step}: {self._source}")
        return self.kept

    def load(self, trained: Trained) -> None:
        """Give networks and optimisers the state that the training under way was saved with, if it was."""
        if self._source is None or self._under_way.get("name") != self.name:
            return
        for group, each in trained.items():
            tensors = checkpoint.load_tensors(self._source, _group(group))
            if isinstance(each, nn.Module):
                checkpoint.load_module(each, tensors, self._source)
            else:
                checkpoint.load_optimizer(each, tensors or {})
        if self.accelerator.scaler is not None and self._under_way["scaler"]:
            self.accelerator.scaler.load_state_dict(self._under_way["scaler"])

    def after_step(self, step: int, total: int, trained: Trained, keep: Callable[[], dict[str, Any]]) -> None:
        """Save where it is due and after the last step; raise Interrupted where a stop was requested.

        One process alone scores in no time what it trained, and saves only where it is due. step: how many were taken.
        keep: called by all processes, returns what else `begin` has to return, as JSON.
        """
        if self.checkpoints is None:
            return
        self.step = step
        request = self._agreed_request(always=step == total)
        if request or (step == total and not self._is_alone):
            tensors = {_group(group): _tensors(each) for group, each in trained.items()}
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
            self._save(tensors, {**keep(), "name": self.name, "step": step, "scaler": scaler})
        if request == STOP:
            raise Interrupted(self._stopped(f"after step {step} of {total} of {self.name}"))

    def finish(self, result: Any) -> None:
        """Keep what came of the training under way: plain values. Raises Interrupted where a stop was requested."""
        self.results[self.name] = result
        if self.checkpoints is None:
            return
        self._steps_before, self.step, self._has_unsaved_results = self._steps_before + self.step, 0, True
        request = self._agreed_request(always=True)
        if request or not self._is_alone:
            self._save({}, {})
        if request == STOP:
            raise Interrupted(self._stopped(f"after {self.name}"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let the main process make calls that no other makes, for what it calculates alone."""
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False

    def check_stop(self, place: str) -> None:
        """Raise Interrupted where a stop was requested in the middle of what a later call repeats.

        Several processes end it first, or some of them would wait for those that have left.
        """
        if self._stop_signal.requested and (self._is_alone or self.accelerator.num_processes == 1):
            if self._has_unsaved_results:
                self._save({}, {})
            raise Interrupted(self._stopped(f"during {place}"))

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether this process got a signal."""
        return self._stop_signal.requested

    def save_settings(self) -> None:
        """Make sure that there is a checkpoint, so that settings belong to what is kept next to the checkpoints."""
        if self.accelerator.is_main_process and not self.has_saved:
            with self.alone():
                self._save({}, {})

    def stoppable(self, on_progress: OnProgress) -> OnProgress:
        """Return an OnProgress for passes over images, which are repeated: see `check_stop`."""

        def on_images(task: str, done: int, total: int) -> None:
            on_progress(task, done, total)
            self.check_stop(task)

        return on_images

    def discard(self) -> None:
        """Drop all that is kept: no other call may go on from it."""
        self.accelerator.wait_for_everyone()
        if self.checkpoints is not None and self.accelerator.is_main_process:
            self.checkpoints.empty()

    def _open(self, checkpoints: Checkpoints) -> None:
        if checkpoints.fresh:
            self.discard()

        def find() -> Path | None:
            newest = checkpoint.newest(checkpoints.folder, ())
            if newest is None:
                checkpoints.empty()  # of what is here without a checkpoint it is not known what it belongs to
            return newest

        self._source = in_main_process(self.accelerator, find)
        if self._source is None:
            return
        metadata = checkpoint.load_metadata(self._source)
        before, now = (dict(flatten(settings)) for settings in (metadata["settings"], self.settings))
        if changed := [key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...)]:
            raise UserError(
                f"{checkpoints.folder}: is of a stopped command with other values of {', '.join(changed)}; repeat that "
                "to go on with it, or choose another --out, or drop it with --fresh"
            )
        self.results, self._steps_before = metadata["results"], metadata["steps_before"]
        self._under_way = metadata["under_way"]
        self.has_saved = True
        if self.results:
            checkpoints.log(f"finished before: {', '.join(self.results)}")

    def _release(self) -> None:
        """Let other calls have the folder, and leave none that is empty."""
        if self._lock is not None:
            self._lock.release()
            with suppress(OSError):
                self._lock.folder.rmdir()

    def _agreed_request(self, *, always: bool) -> int:
        is_due = self.accelerator.is_main_process and time.monotonic() >= self._next_save
        own = STOP if self._stop_signal.requested else SAVE if is_due else 0
        if self._is_alone:
            return own
        return most_urgent(own, self.accelerator, self.step, always=always)

    def _save(self, tensors: Mapping[str, Mapping[str, Tensor]], under_way: Mapping[str, Any]) -> None:
        assert self.checkpoints is not None
        started = time.monotonic()
        if self.accelerator.is_main_process:
            assert self._lock is not None
            self._lock.check()
            # Each training counts one more than its steps: its end and its result are different checkpoints.
            number = self._steps_before + self.step + len(self.results)
            metadata = {"settings": self.settings, "results": self.results, "steps_before": self._steps_before}
            try:
                checkpoint.save(self.checkpoints.folder, number, tensors, {**metadata, "under_way": under_way})
            except UserError as failure:  # what takes one process minutes need not end for lack of room
                if not self._is_alone:
                    raise
                self.checkpoints.log(f"warning: nothing is kept for a call that goes on: {failure}")
                self._next_save = time.monotonic() + SECONDS_BETWEEN
                return
            checkpoint.prune(self.checkpoints.folder, number, KEEP_LAST, None)
        if not self._is_alone:
            self.accelerator.wait_for_everyone()
        self.has_saved, self._has_unsaved_results = True, False
        now = time.monotonic()
        self._next_save = now + max(SECONDS_BETWEEN, (now - started) / LARGEST_SHARE)

    def _stopped(self, place: str) -> str:
        """Return the last line of a command that a signal stopped."""
        assert self.checkpoints is not None
        if not self.has_saved:
            return f"stopped {place}, with nothing to save yet; the same command starts anew"
        return f"stopped {place}, saved in {self.checkpoints.folder}; the same command goes on from there"


def decisive(report: Mapping[str, Any], data: LabelledData) -> dict[str, Any]:
    """Return settings from what a report says of its protocol, with the images; not what a run's folder is called.

    Nor how many processes there were: they change no result but in the order of sums.
    """
    kept = {key: value for key, value in report.items() if key not in ("run", "processes")}
    return kept | {"classes": list(data.train.classes), "section": dict(data.section)}


def _group(name: str) -> str:
    return name.replace(" ", "_")


def _tensors(trained: nn.Module | Optimizer) -> Mapping[str, Tensor]:
    return trained.state_dict() if isinstance(trained, nn.Module) else checkpoint.optimizer_tensors(trained)
