"""The messages of a run: its header, scores, last lines, and what went wrong."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from perceptual_mae.config.training_sections import TrainingSection
from perceptual_mae.data.unreadable import LIST_NAME
from perceptual_mae.evaluation.open_run import computes_in_bf16
from perceptual_mae.evaluation.representation.online import NEIGHBOURS
from perceptual_mae.run import checkpoint
from perceptual_mae.training.peers import Peer
from perceptual_mae.training.trainer import Trainer

OUT_OF_MEMORY_AT_THE_START = "out of memory before the first step: choose a smaller generator or smaller images"


def header(
    path: Path,
    total_steps: int,
    training: TrainingSection,
    *,
    processes: int,
    device: str,
    precision: str,
    learning_rate: float,
) -> str:
    """Return what is about to run: where, on what, with which effective batch and learning rate."""
    share = training.batch_size // (processes * training.accumulation)
    return (
        f"{path}: {total_steps} steps of {training.batch_size} images "
        f"({processes} {'process' if processes == 1 else 'processes'} x {training.accumulation} "
        f"{'micro-batch' if training.accumulation == 1 else 'micro-batches'} x {share} images) "
        f"on {device}, precision {precision}, learning rate {learning_rate:g}"
    )


def warnings_of(trainer: Trainer) -> list[str]:
    """Return what in a run is known to go wrong: loss networks without weights, a full constant adversarial weight."""
    warnings = [
        f"the loss network {name} has random weights: what it compares means little; set weights in "
        "losses.*.network to a file"
        for name in trainer.networks.untrained()
    ]
    if trainer.accelerator.mixed_precision == "bf16" and not computes_in_bf16():
        warnings.append(
            "this device emulates bf16, which takes many times as long as float32; set training.precision=auto"
        )
    adversarial = trainer.objective.lines.get("adversarial")
    if adversarial is not None and isinstance(adversarial.weight, float) and adversarial.weight >= 1.0:
        warnings.append(
            f"losses.adversarial.weight is a constant {adversarial.weight:g} (the paper's is 1): at small scale "
            "the generator then ignores its input; {balanced: 0.1, cap: 1.0} keeps it in check"
        )
    return warnings


def headline(scores: Mapping[str, Any]) -> str:
    """Return one line of held-out scores: PSNR of the composite and of hidden pixels, SSIM, and the representation's.

    Those that are not defined, or not measured, are left out.
    """
    hidden = scores.get("psnr_masked")
    parts = [f"PSNR {scores['psnr']:.2f} dB"]
    parts += [f"hidden pixels {hidden:.2f} dB"] if hidden is not None else []
    parts += [f"SSIM {scores['ssim']:.3f}"] if "ssim" in scores else []
    return "held-out " + ", ".join(parts + representation_parts(scores))


def representation_parts(scores: Mapping[str, Any]) -> list[str]:
    """Return the scores of the mean patch token in words: RankMe, and top-1 accuracies where there are labels."""
    scored = {key: value for key, value in scores["representation"].items() if value is not None}
    parts = [f"RankMe {scored['rankme']:.1f}"] if "rankme" in scored else []
    names = {"probe": "probe", "knn": f"{NEIGHBOURS}-NN"}
    return parts + [f"{name} {100 * scored[key]:.1f} %" for key, name in names.items() if key in scored]


def final_message(path: Path, summary: Mapping[str, Any]) -> str:
    """Return the last lines of a run: its scores with the baselines', where it is and what to do next."""
    rows = {"this run": summary, **{name.replace("_", " "): row for name, row in summary["baselines"].items()}}
    lines = [f"{summary['num_images']} held-out images ({summary['split']}), ratio {summary['ratio']:g}, fixed masks:"]
    lines.append(f"  {'':18}{'PSNR':>8}{'hidden':>8}{'SSIM':>8}")
    for name, row in rows.items():
        scores = [(row.get(key), digits) for key, digits in (("psnr", 2), ("psnr_masked", 2), ("ssim", 3))]
        cells = ["-" if score is None else f"{score:.{digits}f}" for score, digits in scores]
        lines.append(f"  {name:18}{''.join(f'{cell:>8}' for cell in cells)}")
    if parts := representation_parts(summary):
        lines.append(f"  features of whole images: {', '.join(parts)}")
    if summary["unreadable_images"]:
        lines.append(f"  {summary['unreadable_images']} images could not be read and were left out: see {LIST_NAME}")
    if summary["uses_target_statistics"]:
        lines.append("  (norm_pix: patches were un-normalised with the true patch's mean and deviation)")
    lines += learned_nothing(summary)
    lines += [
        f"  scores    {path / 'summary.json'}",
        f"  pictures  {path / 'images'}",
        f"  curves    {path / 'metrics.jsonl'}, drawn by pmae curves {path}",
        f"  weights   {path / 'checkpoints'}",
        f"next: pmae visualize {path}",
    ]
    return "\n".join(lines)


def learned_nothing(summary: Mapping[str, Any]) -> list[str]:
    """Return a line for a run whose hidden pixels are worse than the mean colour of the visible ones; else none."""
    hidden, baseline = summary["psnr_masked"], summary["baselines"]["mean_color"]["psnr_masked"]
    if hidden is None or baseline is None or hidden >= baseline:
        return []
    return [
        f"  hidden pixels are worse than the mean colour of the visible ones ({hidden:.2f} dB, {baseline:.2f} dB): "
        "the run has not learned yet; train longer, and look for the cause in its curves"
    ]


def stopped(path: Path, step: int, number: int = signal.SIGINT) -> str:
    """Return the last line of a run that the signal of this number stopped."""
    requeue = ", so the job may be requeued as it is" if number == getattr(signal, "SIGUSR1", None) else ""
    return f"stopped and saved after step {step} in {path}; the same command goes on from there{requeue}"


def stopped_before(path: Path) -> str:
    """Return the last line of a run that a signal stopped before it could begin."""
    return f"stopped before the first step in {path}; nothing was changed, and the same command starts again"


def lost_worker(path: Path, lost: str) -> str:
    """Return what to do after a data worker died and did so again; `lost` says which and on what file."""
    return f"{path}: {lost}; {_last_checkpoint(path)}, and the same command goes on from there"


def too_many_unreadable(path: Path, refusal: str) -> str:
    """Return what to do after too many images could not be read; `refusal` says how many, and what may be changed."""
    return (
        f"{path}: {refusal}; all are listed in {path / LIST_NAME}; {_last_checkpoint(path)}, and the same command then "
        "goes on from there"
    )


def lost_processes(path: Path, step: int | None, lost: Sequence[int], peers: Sequence[Peer]) -> str:
    """Return what to do after the processes of these ranks died (none: it is not known which).

    step: how many were taken; None before training.
    """
    names = " and ".join(f"process {rank} (pid {peers[rank].pid} on {peers[rank].host})" for rank in lost)
    when = "before training" if step is None else f"after step {step}"
    return (
        f"{path}: {names or 'another process of the run'} was lost {when}; the same command goes on from the last "
        "checkpoint"
    )


def _last_checkpoint(path: Path) -> str:
    saved = checkpoint.checkpoints(path / "checkpoints")
    return f"the last checkpoint is {saved[-1].name}" if saved else "no checkpoint was written yet"


def skipped(bad: Sequence[tuple[int, str]], in_row: int, max_skips: int) -> str:
    """Return a line about steps that changed no weights, each with the term that was not finite."""
    step, name = bad[0]
    steps = f"step {step}" if len(bad) == 1 else f"{len(bad)} steps, the first {step}"
    return (
        f"skipped {steps}: '{name}' was not finite ({in_row} in a row now, of which training.max_skips allows "
        f"{max_skips}); where such steps go on, lower optimizer.lr or set optimizer.clip_norm in a branch "
        "(pmae pretrain RUN --from-checkpoint)"
    )


def out_of_memory(path: Path, training: TrainingSection, processes: int) -> str:
    """Return what to change after a step ran out of memory: more micro-batches where the batch can be cut further."""
    share = training.batch_size // processes
    cuts = [parts for parts in range(training.accumulation + 1, share + 1) if share % parts == 0]
    smaller = "a smaller training.batch_size in a new run (--fresh)"
    return (
        f"{path}: out of memory with training.batch_size={training.batch_size} in training.accumulation="
        f"{training.accumulation} micro-batches; "
        + (
            f"repeat the command with training.accumulation={cuts[0]} (same result, less memory: it goes on from the "
            f"last checkpoint), or choose {smaller}"
            if cuts
            else f"choose {smaller}, or a smaller generator"
        )
    )


def is_out_of_memory(failure: BaseException) -> bool:
    """Tell whether a device or the host ran out of memory (torch has no type of its own for the host's)."""
    return isinstance(failure, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(failure)
