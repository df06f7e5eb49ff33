"""What every penalty of the table promises."""

import inspect

import pytest

from discriminators import PENALTIES


@pytest.mark.parametrize("name", PENALTIES)
def test_it_is_built_with_what_the_run_knows(name):
    penalty = PENALTIES[name]((32, 32), 16)
    assert callable(penalty)
    positional = [each for each in inspect.signature(PENALTIES[name]).parameters.values() if each.kind < 3]
    assert [each.name for each in positional] == ["size", "batch_size"]
