"""The processes of a run: who they are, and which of them is gone when a connection breaks."""

import os
import socket
import time
from typing import NamedTuple

import psutil
from accelerate import Accelerator
from accelerate.utils import gather_object

BROKEN = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "remote process")
PATIENCE = 5.0
"""Seconds a process is given to be gone after its connection broke."""


class Peer(NamedTuple):
    """Where a process of the run is."""

    host: str
    pid: int

    @property
    def is_gone(self) -> bool:
        """Whether it is a process of this host that has died; of other hosts nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            return bool(
                psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            )  # whoever started it has not noticed yet
        except psutil.NoSuchProcess:
            return True


def exchange_peers(accelerator: Accelerator) -> list[Peer]:
    """Return all processes of the run, by rank; all of them must ask."""
    own = Peer(socket.gethostname(), os.getpid())
    return [Peer(*each) for each in gather_object([own])] if accelerator.num_processes > 1 else [own]


def is_broken_connection(failure: BaseException) -> bool:
    """Tell whether an error says that another process cannot be reached: gloo's and NCCL's have no type in common."""
    words = str(failure).lower()
    is_from_a_backend = isinstance(failure, RuntimeError) and ("gloo" in words or "nccl" in words)
    return is_from_a_backend and any(each in words for each in BROKEN)


def lost_peers(peers: list[Peer]) -> list[int]:
    """Return the ranks of the processes that are gone; none where it cannot be known."""
    deadline = time.monotonic() + PATIENCE
    while not (lost := [rank for rank, peer in enumerate(peers) if peer.is_gone]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return lost
