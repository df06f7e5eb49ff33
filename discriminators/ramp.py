"""Numbers that move over a run."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Ramp(BaseModel):
    """A number that moves from one value to another over the first part of a run, then stays.

    In a file: `{from: 0.5, to: 0.75, over: 0.5}`; `over` is a share of the run's steps in (0, 1]. The shape is a line,
    or half a cosine, which begins and ends slowly: end + (start - end) (1 + cos(pi x)) / 2 at the share x of the ramp.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    start: float = Field(alias="from", description="value at the first step [none]")
    end: float = Field(alias="to", description="value at the end of the ramp, and from then on [none]")
    over: float = Field(1.0, gt=0, le=1, description="share of the run's steps that the ramp takes [ours]")
    shape: Literal["linear", "cosine"] = Field("linear", description="a line, or half a cosine [ours]")

    def at(self, fraction: float) -> float:
        """Return the value at this share of the run's steps, in [0, 1]."""
        x = min(1.0, fraction / self.over)
        if self.shape == "cosine":
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * x)) / 2
        return self.start + (self.end - self.start) * x


def value_at(value: float | Ramp, fraction: float) -> float:
    """Return a number or the ramp's value at this fraction of the run."""
    return value.at(fraction) if isinstance(value, Ramp) else value


def range_of(value: float | Ramp) -> tuple[float, float]:
    """Return the least and the largest value that a number or a ramp has in a run."""
    values = (value.start, value.end) if isinstance(value, Ramp) else (value, value)
    return min(values), max(values)
