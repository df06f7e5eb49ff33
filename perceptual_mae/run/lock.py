"""The lock of a folder that is trained in: a small file that says which process holds it, on which machine, since when.

A process that is gone without having removed its lock (SIGKILL, a power cut) leaves a stale one, which the next one
takes over. On the same machine the system says whether the process lives; of another machine's it is only known that
it touches its lock every `BEAT` seconds.
"""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from perceptual_mae.errors import UserError
from perceptual_mae.files import partial_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The lock's name in its folder."""
BEAT = 30.0
"""Seconds between two signs of life."""
SILENCE = 600.0
"""Seconds without a sign of life after which a process of another machine counts as gone."""


@dataclass(frozen=True)
class Holder:
    """A process that trains: its machine, number and time of start in words.

    process_start: the start as the system counts it, which another process of the same number does not share. boot,
    namespace: what the numbers of processes belong to; containers may share a host's name. None: not known here.
    """

    host: str
    pid: int
    started: str
    process_start: int | None = None
    boot: str | None = None
    namespace: str | None = None

    @property
    def is_of_this_machine(self) -> bool:
        """Whether this process can ask the system about it."""
        here = this_process()
        return (self.host, self.boot, self.namespace) == (here.host, here.boot, here.namespace)

    def is_gone(self, silence: float) -> bool:
        """Whether it ended without removing its lock, which it touched `silence` seconds ago."""
        if not self.is_of_this_machine:
            return silence > SILENCE
        return not psutil.pid_exists(self.pid) or _process_start(self.pid) != self.process_start

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.started})"


class FolderLock:
    """The right to train in a folder, for one process at a time.

    `acquire` raises UserError where another process has it. As a context manager it is taken and given back.
    `replaced` is the process whose stale lock was taken over, if there was one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK
        self.replaced: Holder | None = None
        self._holder: Holder | None = None
        self._made: list[Path] = []
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, in a folder that is made where there is none; raises UserError where another has it."""
        self._made = [each for each in (self.folder, *self.folder.parents) if not each.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        holder = this_process()
        try:
            self._write(holder)
        except BaseException:
            self._remove_folders()
            raise
        self._holder = holder
        _held.add(self)
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise UserError where the lock is another's by now: it was removed, or this process was suspended for long.

        A lock that was only removed is written again.
        """
        current = read_holder(self.path)
        if current is None and self._holder is not None:
            self._write(self._holder)
        elif current != self._holder:
            raise UserError(
                f"{self.folder}: {current} has begun to train here meanwhile, so this process stops and writes "
                "nothing more; let one of them go on"
            )

    def release(self) -> None:
        """Remove the lock if this process has it, and folders that were made for it and are empty; may be repeated."""
        if self._holder is None or self._holder.pid != os.getpid():  # a worker has a copy of what its parent holds
            return
        self._released.set()
        if self._thread is not None:  # none is left to the end of the interpreter
            self._thread.join(timeout=1.0)
        _held.discard(self)
        with suppress(OSError):
            if read_holder(self.path) == self._holder:
                self.path.unlink()
        self._holder = None
        self._remove_folders()

    def _write(self, holder: Holder) -> None:
        """Write the lock, unless a process that lives has it."""
        with _one_at_a_time(self.folder), partial_file(self.path) as own:
            own.write_text(json.dumps(asdict(holder)) + "\n")
            current = read_holder(self.path)
            if current is not None:
                if not current.is_gone(_modified(own) - _modified(self.path)):  # both by the clock of the disk
                    raise UserError(refusal(self.folder, current))
                self.replaced = current
            self.path.unlink(missing_ok=True)  # stale, or broken
            try:
                os.link(own, self.path)  # unlike a rename, fails where another machine was faster
            except FileExistsError:
                raise UserError(refusal(self.folder, read_holder(self.path))) from None
            except OSError:  # a file system without links
                self.path.write_text(own.read_text())

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                if read_holder(self.path) == self._holder:
                    os.utime(self.path)

    def _remove_folders(self) -> None:
        with suppress(OSError):
            for folder in self._made:  # from the lock's own up
                folder.rmdir()


def is_unused(folder: Path) -> bool:
    """Tell whether a folder is not there, is empty, or has only what a run that was killed at once leaves in it."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".partial")}
    return names <= {LOCK, "log.txt"}  # a log is added to, never lost


def release_all() -> None:
    """Give back every lock of this process, which is about to end without cleaning up."""
    for lock in list(_held):
        lock.release()


def read_holder(path: Path) -> Holder | None:
    """Return who holds a lock, or None where there is none or it is broken."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def refusal(folder: Path, holder: Holder | None) -> str:
    """Say who trains in a folder, and what to do."""
    if holder is None:
        return f"{folder}: another process has just begun to train in it; choose another --out"
    what = f"wait until it ends, stop it (kill {holder.pid} on {holder.host}), or choose another --out"
    if not holder.is_of_this_machine:
        what += (
            f"; if it is gone, remove {folder / LOCK}, or try again when it has been silent for "
            f"{SILENCE / 60:.0f} minutes"
        )
    return f"{folder}: {holder} trains in it; {what}"


def this_process() -> Holder:
    """Return this process as the holder of a lock."""
    return Holder(
        socket.gethostname(),
        os.getpid(),
        time.strftime("%Y-%m-%d %H:%M:%S"),
        _process_start(os.getpid()),
        _read(Path("/proc/sys/kernel/random/boot_id")),
        _link(Path("/proc/self/ns/pid")),
    )


_held: set[FolderLock] = set()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out; where the system does not know how, it is left to links."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _process_start(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine started; None where the system does not say."""
    status = _read(Path(f"/proc/{pid}/stat"))
    # Fields 3 and 22 of proc(5); the name before them, in brackets, may hold spaces and brackets of its own.
    fields = status.rpartition(")")[2].split() if status else []
    has_ended = not fields or fields[0] in "ZX"  # killed, and still listed
    return None if has_ended else int(fields[19])


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # given back this very moment
        return -math.inf


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
