"""Ramps against hand-worked values."""

import pytest
from pydantic import ValidationError

from discriminators.ramp import Ramp, range_of, value_at


def test_half_way_a_cosine_is_half_way_as_a_line_is():
    for shape in ("linear", "cosine"):
        ramp = Ramp(start=2e-4, end=5e-5, shape=shape)
        assert [ramp.at(fraction) for fraction in (0, 0.5, 1)] == pytest.approx([2e-4, 1.25e-4, 5e-5])


def test_a_cosine_begins_and_ends_slowly():
    """(1 + cos(pi / 4)) / 2 = 0.853553 and (1 + cos(3 pi / 4)) / 2 = 0.146447, over half the run; then constant."""
    ramp = Ramp.model_validate({"from": 1.0, "to": 0.0, "over": 0.5, "shape": "cosine"})
    values = [ramp.at(fraction) for fraction in (0.125, 0.375, 0.5, 0.75)]
    assert values == pytest.approx([0.853553, 0.146447, 0, 0], abs=1e-6)


def test_numbers_stand_for_themselves():
    assert value_at(0.3, 0.9) == 0.3
    assert value_at(Ramp(start=0, end=1), 0.25) == 0.25
    assert range_of(0.3) == (0.3, 0.3)
    assert range_of(Ramp(start=1, end=0.5)) == (0.5, 1)


def test_unknown_shapes_are_refused():
    with pytest.raises(ValidationError, match="linear"):
        Ramp(start=0, end=1, shape="sine")
