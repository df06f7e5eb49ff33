"""What tests of commands that are stopped or killed share: ways to end a command."""

import os
import signal
from collections.abc import Callable
from typing import Any
from unittest import mock

from conftest import KilledError

LIMITS = ("--limit", "24", "--test-limit", "10")
OFTEN = """
import sys
from perceptual_mae.cli import main
from perceptual_mae.evaluation import resumption

resumption.SECONDS_BETWEEN, resumption.LARGEST_SHARE = 0.0, float("inf")
sys.exit(main(sys.argv[1:]))
"""
"""A command that saves at every opportunity."""


def at_call(place: tuple[Any, str], number: int, act: Callable[[], None]) -> Any:
    """Act at the given call of a function of a module."""
    module, name = place
    function, calls = getattr(module, name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            act()
        return function(*arguments, **options)

    return mock.patch.object(module, name, counted)


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill(*_: object) -> None:
    raise KilledError
