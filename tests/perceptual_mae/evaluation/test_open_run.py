"""What every command sets up for its process."""

import platform
import subprocess
import sys

import pytest

TOUCHED = """
import resource
import torch
from perceptual_mae.evaluation.open_run import keep_freed_memory

keep_freed_memory()
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(5_000_000) for _ in range(8)]  # 20 MB each, less than the limit of 32 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    del tensors
print(faults[0], sum(faults[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_a_step_freed_is_there_for_the_next_one() -> None:
    ran = subprocess.run([sys.executable, "-c", TOUCHED], capture_output=True, text=True, check=True)
    first, later = map(int, ran.stdout.split())
    pages = 8 * 20_000_000 // 4096
    assert first > pages / 2  # they come from the system once
    assert later < first / 4
