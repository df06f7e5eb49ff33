"""A cache of whole shards on a local disk, for shards on a mount that is slow to read at random."""

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from perceptual_mae.files import partial_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

GIGABYTE = 10**9


class ShardCache(BaseModel):
    """Where copies of shards are kept, and how many bytes of them: `{folder: /scratch/shards, gigabytes: 200}`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    folder: str = Field(min_length=1, description="folder on a local disk; made where there is none [none]")
    gigabytes: float = Field(gt=0, le=1e9, description="size of all copies in it, in 10^9 bytes [none]")


class LocalCopies:
    """Copies of the shards of a data set in a folder that processes, workers and data sets share.

    A shard is copied when it is first read, as long as there is room; the others are read where they are. Images are
    read in random order: to replace a copy by another would cost a copy for nearly every image, and save none. What
    makes room are copies of other data sets that no process has open. A copy belongs to a path with a size and a time.
    """

    def __init__(self, cache: ShardCache, shards: Collection[Path]) -> None:
        self.folder, self.num_bytes = Path(cache.folder).expanduser(), int(cache.gigabytes * GIGABYTE)
        self._names = {shard: _name_of(shard) for shard in shards}
        self._has_failed = False

    def open(self, shard: Path) -> IO[bytes] | None:
        """Return a shard's copy, opened, which is made where there is none; None where there is no room for one.

        None, too, while another process makes it. As long as it is open, nobody removes it.
        """
        copy = self.folder / self._names[shard]
        with suppress(FileNotFoundError):
            return _shared(copy)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                with _alone(self.folder):
                    if copy.exists():
                        return _shared(copy)
                    if self._is_copied(copy):
                        return None
                    partial = stack.enter_context(partial_file(copy))
                    file = stack.enter_context(partial.open("r+b"))
                    if not self._reserve(shard.stat().st_size, file, partial):
                        return None
                with shard.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.replace(partial, copy)
            return _shared(copy)
        except OSError as failure:
            if not self._has_failed:
                logger.warning(
                    "data.shard_cache: %s could not be copied to %s (%s); it is read where it is",
                    shard,
                    self.folder,
                    failure.strerror or failure,
                )
            self._has_failed = True
            return None

    def _is_copied(self, copy: Path) -> bool:
        """Return whether another process makes this copy; what a process that is gone left of one is removed."""
        return any(not _remove_unused(path) for path in self.folder.glob(f".{copy.name}.*.partial"))

    def _reserve(self, size: int, file: IO[bytes], partial: Path) -> bool:
        """Give a new copy its size, and hold it, so that others count it; False where there is no room."""
        _lock(file, wait=True)
        entries = {path: path.stat() for path in self.folder.iterdir() if path.is_file() and path != partial}
        taken = sum(status.st_size for status in entries.values())
        foreign = [path for path in entries if path.name not in self._names.values()]
        for path in sorted(foreign, key=lambda path: entries[path].st_mtime):
            if taken + size <= self.num_bytes:
                break
            if path.suffix in (".tar", ".partial") and _remove_unused(path):
                taken -= entries[path].st_size
        if taken + size > self.num_bytes:
            return False
        file.truncate(size)
        return True


def _name_of(shard: Path) -> str:
    status = shard.stat()
    key = f"{os.path.abspath(shard)}\n{status.st_size}\n{status.st_mtime_ns}"
    return f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}-{shard.stem}.tar"


def _shared(copy: Path) -> IO[bytes]:
    """Open a copy, and hold it as one that is read."""
    file = copy.open("rb", buffering=0)
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
    with suppress(OSError):
        os.utime(copy)  # when it was last used
    return file


def _lock(file: IO[bytes], *, wait: bool) -> bool:
    """Hold a file alone; False where somebody has it, or the system cannot say."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_unused(path: Path) -> bool:
    """Remove a file that no process holds; return whether it is gone."""
    try:
        with path.open("rb") as file:
            if not _lock(file, wait=False):
                return False
            path.unlink()
    except FileNotFoundError:
        pass
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process or thread at a time decide what is copied."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
