"""The batch script for Slurm, with stand-ins for its commands: processes meet, a warned job goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import DEBUG

SCRIPT = Path(__file__).parents[2] / "scripts/slurm/pretrain.sbatch"
SRUN = """#!/usr/bin/env bash
[ "$1" = --cpus-per-task=8 ] || exit 3  # srun does not take it over from sbatch
shift
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    echo $! >> "$HERE/processes"
done
code=0
for job in $(jobs -p); do wait "$job"; ended=$?; [ "$ended" -gt "$code" ] && code=$ended; done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1 $2" = "show hostnames" ]; then echo localhost; else echo "$@" >> "$HERE/asked"; fi
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the commands of Slurm that the script calls, and this Python."""
    commands = {"srun": SRUN, "scontrol": SCONTROL, "python": f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n'}
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def submitted(here: Path, *words: str) -> subprocess.Popen[str]:
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1]", "SLURM_CPUS_PER_TASK": "8"}
    own = {"HERE": str(here), "PATH": f"{here / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **slurm, **own}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.alone
def test_two_processes_train_a_warned_job_is_queued_again_and_goes_on(here: Path) -> None:
    run = here / "run"
    words = [DEBUG, "mse", "training.epochs=16", "training.log_every=1", "evaluation.every=0", "--out", str(run)]
    job = submitted(here, *words)
    while not (run / "metrics.jsonl").exists() and job.poll() is None:
        time.sleep(0.1)
    for process in (here / "processes").read_text().split():
        os.kill(int(process), signal.SIGUSR1)
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 130, printed
    assert (here / "asked").read_text() == "requeue 4711\n"
    assert not (run / "summary.json").exists()

    again = submitted(here, *words)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    assert "resumed from" in printed
    assert "2 processes" in printed
    assert (here / "asked").read_text() == "requeue 4711\n"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "images_per_second" in record]
    assert steps == list(range(1, 65))


def test_a_job_without_a_folder_that_stays_is_refused(here: Path) -> None:
    job = submitted(here, "quickstart")
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "give --out FOLDER" in printed
