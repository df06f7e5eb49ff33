"""Memory does not grow with steps: a short form of what scripts/measure_memory.py measures over 2,000."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from measure_memory import train

FIRST_STEPS = 100
"""In these the allocator finds its size."""


@pytest.mark.parametrize("method", [pytest.param("mse", marks=pytest.mark.exhaustive), "stylegan2_ada_p"])
def test_memory_is_flat_over_steps(method: str) -> None:
    every = 25
    memory = train(method, 300, every)[FIRST_STEPS // every :]
    assert max(memory) - min(memory) < 16  # MB: a kept graph of one step is more in a hundred steps
