"""What a GPU has to show, in one command of some minutes: the same numbers as a CPU, speed, host waits, CIFAR-10.

    uv run python scripts/gpu_check.py --out runs/gpu --root DATA --resnet FILE --seconds 480

Each part leaves its file in the folder and is skipped where that file is there, so that the same command goes on where
it was stopped; gpu.md collects them. On a machine without a GPU, `--toy` rehearses every part in minutes.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products, before CUDA starts

from gpu import cifar, correctness, profile, speed
from gpu.form import Form
from gpu.page import write_page
from perceptual_mae.files import write_atomically

REFERENCE = "reference"
PARTS: dict[str, Callable[[Form], object]] = {
    "correctness": correctness.check,
    "speed": speed.measure_all,
    "profile": profile.profile_all,
    "cifar": cifar.train_all,
}
"""In the order in which they run, each with the share of the time that is left when it begins."""
SHARES = {"correctness": 0.35, "speed": 0.4, "profile": 0.3, "cifar": 1.0}


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts that are not done; return 0, or 1 where a part failed or numbers differ."""
    given = read_arguments(words)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part == [REFERENCE]:  # the CPU's side, in a process that has no GPU
        correctness.write_reference(Form(given.out, toy=given.toy))
        return 0
    stop_at, failed = time.monotonic() + given.seconds, []
    for part in given.part:
        file = given.out / f"{part}.json"
        if file.exists():
            print(f"{part}: done before, {file}")
            continue
        begun = time.monotonic()
        until = begun + SHARES[part] * (stop_at - begun)
        form = Form(given.out, given.root, given.resnet, given.toy, until)
        print(f"{part}: {until - begun:.0f} s", flush=True)
        try:
            results = PARTS[part](form)
        except Exception:  # the parts after it may still show something
            traceback.print_exc()
            failed.append(part)
            continue
        write_atomically(file, json.dumps(results, indent=2) + "\n")
        print(f"{part}: {time.monotonic() - begun:.0f} s, {file}", flush=True)
    write_page(given.out)
    for part in failed:
        print(f"gpu_check.py: {part} failed", file=sys.stderr)
    return 1 if failed or correctness.differences(given.out) else 0


def read_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results (runs/gpu)")
    parser.add_argument("--root", type=Path, help="CIFAR-10; without it drawn shapes are trained on")
    parser.add_argument("--resnet", type=Path, help="file of the CIFAR ResNet-20 for FID and KID; none: without them")
    parser.add_argument("--seconds", type=float, default=480, help="time for all parts (480)")
    parser.add_argument("--toy", action="store_true", help="tiny networks and few steps: a rehearsal, on a CPU too")
    parser.add_argument(
        "--part", nargs="+", choices=[*PARTS, REFERENCE], default=list(PARTS), help="parts to run (all)"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
