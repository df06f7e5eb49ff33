"""Break runs again and again, resume each, and hold what is left at its end against a run that nothing has broken.

    python scripts/soak.py --faults 100 --processes 1 --seed 0 --out FOLDER

A small stylegan2_ada_p run with averaged weights, R1, path length, ADA and two data workers is started as `pmae
pretrain` starts it; a fault of a random kind hits it at a random time; the same command resumes it; and so on to its
last step. Then every tensor of its last checkpoint, metrics.jsonl (but for times), the pictures and summary.json are
compared with those of an unbroken run. Prints a table, and writes it to FOLDER/soak.md. Exits with 1 where
anything is wrong.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch reads it: a process that has begun threads cannot be forked
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from safetensors.torch import load_file

import perceptual_mae.training.loop  # noqa: F401  (imported once, here: every run is a fork of this process)
from perceptual_mae.cli import main as pmae
from perceptual_mae.run import checkpoint

LAYER = """
data: {kind: shapes, size: 32, num_images: 64, image_size: 32, workers: 2}
generator: {patch_size: 8, width: 32, depth: 2, heads: 2, decoder_width: 32, decoder_depth: 4, decoder_heads: 2}
optimizer: {lr: 1e-3}
schedule: {warmup_ratio: 0.1}
training: {batch_size: 4, epochs: 6, epoch_images: 32, log_every: 3, ema_kimg: 0.05, checkpoint_minutes: 0.03}
evaluation: {every: 1, limit: 8, batch_size: 4, grid_images: 2, probe_images: 0}
"""
METHOD = (
    *("stylegan2_ada_p", "discriminator.channel_base=256", "penalties.r1.every=2", "penalties.path_length.every=3"),
    *("augment.initial_p=0.3", "augment.kimg=0.2"),
)
"""48 steps in 6 epochs; lines of metrics.jsonl do not fall together with the ends of epochs."""

PATIENCE, TIMES = 120.0, ("images_per_second", "data_wait")
"""Seconds within which a run that was hit must have ended; keys of records that no two runs have in common."""
SIGNALS = {name: signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")}


class Attempt:
    """One start of the run, as so many processes: each in a session of its own, as launchers start them."""

    def __init__(self, out: Path, processes: int) -> None:
        self.out, port = out, _free_port()
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        self.printed, self.was_training, self.hit_at = "", False, time.monotonic()
        forks = multiprocessing.get_context("fork")
        self.ranks = [
            forks.Process(target=_run, args=(out, rank, processes, port, writing)) for rank in range(processes)
        ]
        for process in self.ranks:
            process.start()
        os.close(writing)

    is_running = property(lambda self: any(process.is_alive() for process in self.ranks))

    def read(self) -> str:
        """Return everything it has printed so far."""
        try:
            while text := os.read(self._reading, 65536):
                self.printed += text.decode(errors="replace")
        except BlockingIOError:
            pass
        return self.printed

    def wait(self, seconds: float) -> bool:
        """Wait for all its processes to end; return whether they have."""
        deadline = time.monotonic() + seconds
        while self.is_running and time.monotonic() < deadline:
            self.read()
            time.sleep(0.02)
        return not self.is_running

    def send(self, number: int) -> None:
        """Send a signal to the process groups, as terminals and batch systems do: to the data workers, too."""
        for process in self.ranks:
            if process.is_alive():
                os.killpg(process.pid, number)

    def workers(self) -> list[int]:
        """Return the process ids of the data workers."""
        children = (Path(f"/proc/{rank.pid}/task/{rank.pid}/children") for rank in self.ranks)
        return [int(pid) for path in children if path.exists() for pid in path.read_text().split()]

    def end(self) -> list[int]:
        """Kill what is left, and return the exit codes by rank."""
        for process in self.ranks:
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        self.read()
        os.close(self._reading)
        return [process.exitcode for process in self.ranks]


def _run(out: Path, rank: int, processes: int, port: int, writing: int) -> None:
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(writing, descriptor)
    os.close(writing)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    raise SystemExit(pmae(["pretrain", str(out.with_name("layer.yaml")), *METHOD, "--out", str(out)]))


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])


@dataclass(frozen=True)
class Fault:
    """codes: exit codes of which one must be the first rank's, None: it goes on. says: what must be printed then."""

    inflict: Callable[[Attempt, random.Random], None]
    codes: tuple[int, ...] | None
    says: str = ""
    processes: int = 1


def _signalled(number: int) -> Callable[[Attempt, random.Random], None]:
    return lambda attempt, draw: attempt.send(number)


def _stopped(attempt: Attempt, draw: random.Random) -> None:
    attempt.send(signal.SIGSTOP)
    time.sleep(draw.uniform(0.1, 1))
    attempt.send(signal.SIGCONT)


def _full_disk(attempt: Attempt, draw: random.Random) -> None:
    """Let the first rank write no file beyond a size that fits in metrics.jsonl or in no file of a checkpoint."""
    limit = draw.choice((0, 5_000, 20_000, 100_000))
    resource.prlimit(attempt.ranks[0].pid, resource.RLIMIT_FSIZE, (limit, limit))


def _damaged(attempt: Attempt, draw: random.Random) -> None:
    attempt.send(signal.SIGKILL)
    attempt.wait(PATIENCE)
    if len(kept := whole(attempt.out)) < 2:
        return  # nothing to go back to: such a run is refused, which tests show
    victim = draw.choice(sorted(kept[-1].iterdir()))
    content = victim.read_bytes()
    place = draw.randrange(len(content))
    flipped = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
    victim.write_bytes(draw.choice((content[:place], flipped, b"")))


def _worker_killed(attempt: Attempt, draw: random.Random) -> None:
    if workers := attempt.workers():
        os.kill(draw.choice(workers), signal.SIGKILL)


def _rank_killed(attempt: Attempt, draw: random.Random) -> None:
    os.killpg(attempt.ranks[-1].pid, signal.SIGKILL)


FAULTS = {
    "SIGKILL": Fault(_signalled(signal.SIGKILL), (-9,)),
    **{name: Fault(_signalled(number), (130,), "stopped and saved after") for name, number in SIGNALS.items()},
    "SIGSTOP, SIGCONT": Fault(_stopped, None),
    "full disk": Fault(_full_disk, (2,), "File too large"),
    "newest checkpoint damaged": Fault(_damaged, (-9,)),
    "data worker killed": Fault(_worker_killed, None),
    "rank killed": Fault(_rank_killed, (1,), "was lost ", processes=2),
}


@dataclass
class Tally:
    """What the faults were and what came of them."""

    faults: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    runs: int = 0
    tensors: int = 0
    records: int = 0
    pictures: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def whole(out: Path) -> list[Path]:
    """Return the whole checkpoints of a run, in the order of their steps."""
    return [path for path in checkpoint.checkpoints(out / "checkpoints") if checkpoint.corruption(path) is None]


def newest_step(out: Path) -> int:
    """Return the step of the newest whole checkpoint, 0 where there is none."""
    return max(map(checkpoint.step_of, whole(out)), default=0)


def inflict(attempt: Attempt, processes: int, draw: random.Random, tally: Tally) -> str | None:
    """Let one fault happen to an attempt and return its name, or None where it ends before."""
    names = [name for name, fault in FAULTS.items() if fault.processes <= processes]
    rarest = min(tally.faults[name] for name in names)
    name = draw.choice([name for name in names if tally.faults[name] <= rarest + 2])
    attempt.wait(draw.uniform(0, 6))
    attempt.was_training = " steps of " in attempt.read()  # before that there is nothing to save
    if not attempt.is_running:
        return None
    FAULTS[name].inflict(attempt, draw)
    attempt.hit_at = time.monotonic()
    tally.faults[name] += 1
    return name


def check(attempt: Attempt, name: str | None, before: int, tally: Tally) -> None:
    """Wait for an attempt that this fault hit last to end, and write down what is not as it should be.

    before: the step of the newest whole checkpoint when it started.
    """
    codes = FAULTS[name].codes if name is not None else None
    if codes is not None and not attempt.was_training and not attempt.wait(10):
        attempt.send(signal.SIGKILL)  # processes that wait for each other at the start are their launcher's to end
    if not attempt.wait(5 * PATIENCE if codes is None else PATIENCE):
        tally.wrong.append(f"{name}: still running after {time.monotonic() - attempt.hit_at:.0f} s")
    elif codes not in (None, (-9,)):
        kind = "rank" if name == "rank killed" else "signal" if name in SIGNALS else "other"
        tally.seconds[kind] = max(tally.seconds.get(kind, 0.0), time.monotonic() - attempt.hit_at)
    found, printed = attempt.end(), attempt.printed
    tally.restarts += printed.count("workers are started again")
    early = not attempt.was_training and (found[0] in (1, 130) or -found[0] in (*SIGNALS.values(), signal.SIGKILL))
    if found[0] not in (*(codes or ()), 0) and not early:  # 0: its last step was taken already
        tally.wrong.append(f"{name}: exit codes {found}: {printed[-500:]!r}")
    if name is not None and attempt.was_training and found[0] != 0 and FAULTS[name].says not in printed:
        tally.wrong.append(f"{name}: does not say {FAULTS[name].says!r}: {printed[-500:]!r}")
    # The limit that stands for a full disk holds for shared memory, too, where a disk does not.
    excused = name == "full disk" and "Exception ignored in" in printed
    if "Traceback" in printed and not excused:
        tally.wrong.append(f"{name}: a traceback: {printed[-1500:]!r}")
    if "stopped and saved after step " in printed:
        said, saved = int(printed.split("stopped and saved after step ")[1].split()[0]), newest_step(attempt.out)
        if said != saved:
            tally.wrong.append(f"{name}: says it saved step {said}, the newest checkpoint is of {saved}")
    if attempt.was_training and before and f"after {before} steps" not in printed:
        tally.wrong.append(
            f"{name}: did not go on from the newest whole checkpoint, of step {before}: {printed[:500]!r}"
        )


def soak_one(out: Path, processes: int, draw: random.Random, tally: Tally, may_hit: Callable[[], bool]) -> None:
    """Start a run and resume it after each fault, until it has taken its last step."""
    while not tally.wrong:
        before, attempt, last = newest_step(out), Attempt(out, processes), None
        while may_hit() and attempt.is_running and (last is None or FAULTS[last].codes is None):
            last = inflict(attempt, processes, draw, tally) or last
        check(attempt, last, before, tally)
        if all(process.exitcode == 0 for process in attempt.ranks):
            return
        if last is None:
            tally.wrong.append(f"{out.name}: ended though nothing hit it: {attempt.printed[-2000:]!r}")


def compare(out: Path, reference: Path, tally: Tally) -> None:
    """Count what a broken run has in common with the unbroken one, and write down what differs."""
    ours, theirs = (checkpoint.newest(folder / "checkpoints") for folder in (out, reference))
    assert ours is not None and theirs is not None  # noqa: PT018
    files = {folder: sorted(path.name for path in folder.iterdir()) for folder in (ours, theirs)}
    if files[ours] != files[theirs]:
        tally.wrong.append(f"{out.name}: files {files[ours]}, should be {files[theirs]}")
    for name in [name for name in files[theirs] if name.endswith(".safetensors")]:
        own, other = load_file(ours / name), load_file(theirs / name)
        tally.tensors += len(other)
        differing = [
            key for key in other if key not in own or own[key].numpy().tobytes() != other[key].numpy().tobytes()
        ]
        tally.wrong += (
            [f"{out.name}: {name}: {len(differing)} tensors differ, first {differing[0]}"] if differing else []
        )
    for name, read in (("state.json", _read), ("metrics.jsonl", _records), ("summary.json", _read)):
        own, other = (read(folder / name) for folder in ((ours, theirs) if name == "state.json" else (out, reference)))
        if own != other:
            tally.wrong.append(f"{out.name}: {name} differs: {_first_difference(own, other)}")
    tally.runs += 1
    tally.records += len(_records(out / "metrics.jsonl"))
    pictures = [{path.name: path.read_bytes() for path in (folder / "images").iterdir()} for folder in (out, reference)]
    tally.pictures += len(pictures[0])
    if pictures[0] != pictures[1]:
        tally.wrong.append(f"{out.name}: pictures {sorted(pictures[0])} differ from {sorted(pictures[1])}")


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _records(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def _first_difference(own: Any, other: Any) -> str:
    if isinstance(own, list) and len(own) != len(other):
        steps = [[record["step"] for record in records] for records in (own, other)]
        return f"{len(own)} records for {len(other)}, steps {steps}"
    pairs = zip(own, other, strict=True) if isinstance(own, list) else [(own, other)]
    one, two = next((a, b) for a, b in pairs if a != b)
    return f"{[(key, one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)]}"[:400]


def report(tallies: dict[int, Tally], command: str, minutes: float) -> str:
    """Return the page of results."""
    heads = [f"{count} process{'es' if count > 1 else ''}" for count in tallies]
    lines = ["| fault | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    lines += [
        f"| {name} | " + " | ".join(str(each.faults[name]) for each in tallies.values()) + " |" for name in FAULTS
    ]
    rows: dict[str, Callable[[Tally], object]] = {
        "**faults**": lambda each: each.faults.total(),
        "runs brought to their last step and compared": lambda each: each.runs,
        "tensors compared, bit by bit": lambda each: each.tensors,
        "records of metrics.jsonl compared": lambda each: each.records,
        "pictures compared, byte by byte": lambda each: each.pictures,
        "data workers started again": lambda each: each.restarts,
        "longest time to the end of all processes after a signal": lambda each: (
            f"{each.seconds.get('signal', 0):.1f} s"
        ),
        "the same after a rank was killed": lambda each: f"{each.seconds.get('rank', 0):.1f} s",
        "**what was wrong**": lambda each: len(each.wrong),
    }
    lines += [
        f"| {name} | " + " | ".join(str(value(each)) for each in tallies.values()) + " |"
        for name, value in rows.items()
    ]
    wrong = [f"- {line}" for tally in tallies.values() for line in tally.wrong]
    head = [f"`{command}`, {date.today()}, {os.cpu_count()} CPU cores, {minutes:.0f} minutes."]
    return "\n".join([*head, "", *lines, *([""] if wrong else []), *wrong]) + "\n"


def soak(faults: int, processes: list[int], seed: int, out: Path, minutes: float) -> dict[int, Tally]:
    """Inflict so many faults, or as many as the minutes allow, on runs of each number of processes."""
    tallies = {count: Tally() for count in processes}
    for number, (count, tally) in enumerate(tallies.items()):
        draw, deadline = random.Random(f"{seed} {count}"), time.monotonic() + 60 * minutes / len(processes)
        share = faults // len(processes) + (number < faults % len(processes))
        reference = out / f"unbroken_{count}"
        soak_one(reference, count, draw, tally, lambda: False)

        def may_hit(tally: Tally = tally, share: int = share, deadline: float = deadline) -> bool:
            return tally.faults.total() < share and time.monotonic() < deadline

        while may_hit() and not tally.wrong:
            run = out / f"broken_{count}_{tally.runs:03d}"
            soak_one(run, count, draw, tally, may_hit)
            if not tally.wrong:
                compare(run, reference, tally)
            print(
                f"{run.name}: {tally.faults.total()} faults, {len(tally.wrong)} wrong",
                *tally.wrong,
                sep="\n",
                flush=True,
            )
    return tallies


def main() -> int:
    """Read the command line; return 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=20, help="of all numbers of processes together")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0, help="after which no more faults are inflicted")
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        parser.error(f"{options.out}: is not empty; choose another folder with --out")
    (options.out / "layer.yaml").write_text(LAYER)
    begun = time.monotonic()
    tallies = soak(options.faults, options.processes, options.seed, options.out, options.minutes)
    words = f"--faults {options.faults} --processes {' '.join(map(str, options.processes))} --seed {options.seed}"
    page = report(tallies, f"python scripts/soak.py {words} --out FOLDER", (time.monotonic() - begun) / 60)
    (options.out / "soak.md").write_text(page)
    print(page)
    return int(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    raise SystemExit(main())
