"""Random streams that depend on what is drawn for, never on who draws it or what was drawn before.

Every draw of the toolkit belongs to a named stream and to coordinates such as (seed, epoch, sample index). Worker
processes, ranks and resumed runs therefore see the same numbers.
"""

import hashlib
import struct

import torch


def stream_seed(stream: str, *coordinates: int) -> int:
    """Return a 63-bit seed for a stream ("mask", "augment", ...) at integer coordinates, e.g. (seed, epoch, index)."""
    packed = struct.pack(f"<{len(coordinates)}q", *coordinates)
    digest = hashlib.blake2b(packed, digest_size=8, person=stream.encode()[:16]).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(name: str, *coordinates: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator at the start of the stream `name` at the given coordinates.

    Its numbers depend on the kind of `device`: a GPU draws others than a CPU does.
    """
    return torch.Generator(device).manual_seed(stream_seed(name, *coordinates))
