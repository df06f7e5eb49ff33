"""Results of a bench as one tree of plain values: the file of `--json`, and the source of the tables."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from perceptual_mae.benchmark.measure import Candidate, quartiles, ratios
from perceptual_mae.benchmark.profiler import Clock
from perceptual_mae.evaluation.open_run import precision_of
from perceptual_mae.run.folder import version_of

MILLI = 1e3


def report(candidates: Sequence[Candidate], clock: Clock, threads: int) -> dict[str, Any]:
    """Return where and how was measured, and the results, with ratios to the second candidate (the only one's: 1).

    Times are milliseconds of a step, memory is in bytes, `reference` is a place in `configurations`.
    """
    reference = min(1, len(candidates) - 1)
    device = candidates[0].trainer.accelerator.device
    return {
        "perceptual_mae": version_of("perceptual-mae"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": threads,
        "clock": clock.name,
        "rounds": len(candidates[0].seconds),
        "process_peak_memory": resident_peak(),
        "reference": reference,
        "configurations": [describe(candidate, candidates[reference]) for candidate in candidates],
    }


def describe(candidate: Candidate, reference: Candidate) -> dict[str, Any]:
    """Return one configuration's figures; those without a kind of step are of the mean step."""
    counts, config = candidate.counts, candidate.config
    milliseconds = quartiles([MILLI * seconds for seconds in candidate.mean_seconds()])
    return {
        "name": candidate.name,
        "image_size": list(config.data.size),
        "batch_size": candidate.batch_size,
        "precision": precision_of(config.training.precision),
        "augment_p": candidate.augment_p,
        "ratio": asdict(ratios(candidate, reference)),
        "milliseconds": asdict(milliseconds),
        "rounds": [MILLI * seconds for seconds in candidate.mean_seconds()],
        **{
            name: candidate.mean_of({label: getattr(count, name) for label, count in counts.items()})
            for name in ("flops", "generator_passes", "discriminator_passes")
        },
        "peak_memory": max(count.peak_memory for count in counts.values()),
        "parts": {
            name: {"share": share, "milliseconds": share * milliseconds.median}
            for name, share in candidate.part_shares().items()
        },
        "steps": [
            {
                "kind": kind.label,
                "weight": kind.weight,
                "milliseconds": quartiles(
                    [MILLI * sum(kinds[kind.label].values()) for kinds in candidate.seconds]
                ).median,
                **asdict(counts[kind.label]),
            }
            for kind in candidate.kinds
        ],
    }


def resident_peak() -> int | None:
    """Return the most memory this process has held so far, in bytes; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
