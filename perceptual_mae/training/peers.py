"""The processes of a run: who they are, and which of them is gone when a connection breaks."""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed import DistNetworkError

from perceptual_mae.run.lock import Holder, release_all, this_process

BROKEN = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "remote process")
PATIENCE = 5.0
"""Seconds a process is given to be gone after its connection broke."""
EXIT_CODE = 1
UNNOTICED = 15.0
"""Seconds a process may be gone before those that have not noticed, as they wait for something else, are ended."""


Peer = Holder
"""A process of the run, as it is known by the lock of a folder: its machine, number and start."""


def exchange_peers(accelerator: Accelerator) -> list[Peer]:
    """Return all processes of the run, by rank; all of them must ask."""
    own = this_process()
    return [Peer(**each) for each in gather_object([asdict(own)])] if accelerator.num_processes > 1 else [own]


def is_broken_connection(failure: BaseException) -> bool:
    """Tell whether an error says that another process cannot be reached: gloo's and NCCL's have no type in common."""
    words = str(failure).lower()
    is_from_a_backend = isinstance(failure, RuntimeError) and ("gloo" in words or "nccl" in words)
    is_of_joining = isinstance(failure, DistNetworkError)
    return (is_from_a_backend or is_of_joining) and any(each in words for each in BROKEN)


def lost_peers(peers: list[Peer]) -> list[int]:
    """Return the ranks of the processes that are gone; none where it cannot be known."""
    deadline = time.monotonic() + PATIENCE
    while not (lost := gone(peers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return lost


def gone(peers: list[Peer]) -> list[int]:
    """Return the ranks of the processes that have ended; nothing is known of other machines and containers."""
    return [rank for rank, peer in enumerate(peers) if peer.is_of_this_machine and peer.is_gone(silence=0.0)]


class PeerMonitor:
    """Ends this process a while after another process of the run is gone, in one line, with exit code 1.

    A process that uses a broken connection gets an error; one that waits for something else (data, or an exchange that
    never returns) gets none. As a context manager the monitor ends with its block, unless that failed by a broken
    connection: then the process still has to end in the same time. message: called with the ranks that are gone,
    returns the line.
    """

    def __init__(self, peers: list[Peer], message: Callable[[list[int]], str]) -> None:
        self._peers, self._message, self._is_over = peers, message, threading.Event()
        self._thread = threading.Thread(target=self._monitor, daemon=True)

    def __enter__(self) -> "PeerMonitor":
        if len(self._peers) > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not is_broken_connection(error):
            self.stop()

    def stop(self) -> None:
        """End it: from here on a process ends when it is done."""
        self._is_over.set()
        if self._thread.is_alive():  # none is left to the end of the interpreter
            self._thread.join(timeout=1.0)

    def _monitor(self) -> None:
        while not self._is_over.wait(1.0):
            lost = gone(self._peers)
            if lost and not self._is_over.wait(UNNOTICED):
                sys.stderr.write(f"pmae: {self._message(lost)}\n")
                sys.stderr.flush()
                release_all()
                os._exit(EXIT_CODE)
