"""Locks on files that several processes share: a file that is read is held, and who holds none may remove it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def open_held(path: Path) -> IO[bytes]:
    """Open a file without a buffer, and hold it as one that is read; its time becomes that of its last use."""
    file = path.open("rb", buffering=0)
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
    with suppress(OSError):
        os.utime(path)
    return file


def hold_alone(file: IO[bytes], *, wait: bool) -> bool:
    """Hold a file alone; return False where somebody has it, or the system cannot say."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Return whether a process holds a file, or the system cannot say."""
    with path.open("rb") as file:
        return not hold_alone(file, wait=False)


def remove_unheld(path: Path) -> bool:
    """Remove a file that no process holds; return whether it is gone."""
    try:
        with path.open("rb") as file:
            if not hold_alone(file, wait=False):
                return False
            path.unlink()
    except FileNotFoundError:
        pass
    return True


@contextmanager
def turn_in(path: Path) -> Iterator[None]:
    """Let one process or thread at a time do something about a folder or a file; all, where a disk has no locks."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
