"""A cache of whole shards on a local disk, for shards on a mount that is slow to read at random."""

import hashlib
import logging
import os
import shutil
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from perceptual_mae.data.file_locks import hold_alone, open_held, remove_unheld, turn_in
from perceptual_mae.files import partial_file

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
            return open_held(copy)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                with turn_in(self.folder):
                    if copy.exists():
                        return open_held(copy)
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
            return open_held(copy)
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
        return any(not remove_unheld(path) for path in self.folder.glob(f".{copy.name}.*.partial"))

    def _reserve(self, size: int, file: IO[bytes], partial: Path) -> bool:
        """Give a new copy its size, and hold it, so that others count it; False where there is no room."""
        hold_alone(file, wait=True)
        entries = {path: path.stat() for path in self.folder.iterdir() if path.is_file() and path != partial}
        taken = sum(status.st_size for status in entries.values())
        foreign = [path for path in entries if path.name not in self._names.values()]
        for path in sorted(foreign, key=lambda path: entries[path].st_mtime):
            if taken + size <= self.num_bytes:
                break
            if path.suffix in (".tar", ".partial") and remove_unheld(path):
                taken -= entries[path].st_size
        if taken + size > self.num_bytes:
            return False
        file.truncate(size)
        return True


def _name_of(shard: Path) -> str:
    status = shard.stat()
    key = f"{os.path.abspath(shard)}\n{status.st_size}\n{status.st_mtime_ns}"
    return f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}-{shard.stem}.tar"
