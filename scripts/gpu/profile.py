"""Where a step's time goes on the device, and how often the host waits for it."""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu.correctness import device_name
from gpu.form import FOUR, Form, config_of
from gpu.speed import LEAST_SECONDS, release
from perceptual_mae.benchmark.measure import enter

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls in which the host waits; a copy from pageable memory waits in cudaStreamSynchronize."""
LAUNCH = "cudaLaunchKernel"
LINES = 15


def profile_all(form: Form) -> dict[str, Any]:
    """Return a profile of the commonest kind of step of each of four methods; the tables go to profile.txt."""
    tables: list[str] = []
    results = [profiled(form, method, tables) for method in FOUR if form.seconds_left > LEAST_SECONDS]
    (form.out / "profile.txt").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    return {"device": device_name(), "torch": torch.__version__, "methods": results}


def profiled(form: Form, method: str, tables: list[str]) -> dict[str, Any]:
    """Return a step's waits, launched kernels and dearest operations, and add its table."""
    batch_size = 4 if form.toy else 64
    more = (f"training.batch_size={batch_size}", "training.precision=bf16")
    candidate = enter(method, config_of("cifar10" if form.toy else "imagenet", method, toy=form.toy, more=more))
    kind = max(candidate.kinds, key=lambda kind: kind.weight)
    on_gpu = torch.cuda.is_available()
    for number in range(2 if form.toy else 5):
        candidate.step(kind.progress(number))
    if on_gpu:
        torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        candidate.step(kind.progress(9))
        if on_gpu:
            torch.cuda.synchronize()
    events = profiler.key_averages()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    sort_by = "self_cuda_time_total" if on_gpu else order
    tables.append(f"{method}, {kind.label} step\n" + events.table(sort_by=sort_by, row_limit=LINES))
    counts = {event.key: event.count for event in events}
    dearest = sorted(events, key=lambda event: -getattr(event, order))[:LINES]
    release()
    return {
        "method": method,
        "step": kind.label,
        # the last synchronisation is this part's own
        "waits": {name: counts.get(name, 0) - (name == "cudaDeviceSynchronize") for name in WAITS} if on_gpu else None,
        "launched": sum(count for name, count in counts.items() if name.startswith(LAUNCH)) if on_gpu else None,
        "dearest": [{"name": event.key, "count": event.count, "us": getattr(event, order)} for event in dearest],
    }
