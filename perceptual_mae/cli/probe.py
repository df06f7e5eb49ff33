"""`pmae probe`: how well a linear map, or a small head, reads labels from a frozen encoder."""

from pathlib import Path

from perceptual_mae.cli.options import Scored
from perceptual_mae.cli.output import check_out, finish, numbers
from perceptual_mae.cli.progress import Watcher
from perceptual_mae.cli.representation_tables import probe_table
from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.open_run import open_run
from perceptual_mae.evaluation.representation.evaluate import Head, Protocol, probe_run
from perceptual_mae.evaluation.representation.linear_probe import ProbeOptimizer
from perceptual_mae.visualization.layer_map import draw_layer_map


def run(
    scored: Scored,
    *,
    protocol: Protocol | None,
    head: Head | None,
    optimizer: ProbeOptimizer | None,
    seeds: str | None,
    epochs: int | None,
    batch_size: int | None,
    layers: bool,
    baselines: bool,
    out: Path | None,
) -> None:
    """Probe a run, write the scores beside it (or to `out`) and print their table."""
    protocol, head = settle(protocol, head)
    chosen = numbers(seeds, "--seeds", least=0) if seeds is not None else (0, 1, 2) if protocol == "cached" else (0,)
    check_options(protocol, optimizer, epochs, batch_size, layers, baselines)
    check_out(out)
    opened = open_run(**vars(scored))
    with Watcher(quiet=not opened.is_main_process) as watch:
        report = probe_run(
            opened.run,
            opened.data,
            opened.accelerator,
            protocol=protocol,
            optimizer=optimizer or "lbfgs",
            head=head,
            seeds=chosen,
            epochs=epochs,
            batch_size=batch_size,
            layers=layers,
            baselines=baselines,
            ema=scored.ema,
            watch=watch,
        )
    name = "probe_layers" if layers else f"probe_kth_{head}" if protocol == "kth" else f"probe_{protocol}"
    written = out or opened.default_path(name if optimizer in (None, "lbfgs") else f"{name}_{optimizer}")
    if layers and opened.is_main_process:
        title = f"{report['run']}, {report['data']}, {report['train_images']} training images"
        draw_layer_map(report["scores"]["encoder"], written.with_suffix(".png"), title=title)
    finish(opened, report, probe_table, written)


def settle(protocol: Protocol | None, head: Head | None) -> tuple[Protocol, Head]:
    """Return protocol and head, each decided by the other where it was not asked for."""
    if head in ("dense", "mlp") and protocol not in (None, "kth"):
        raise UserError(f"--head {head} is trained by --protocol kth alone; leave out --protocol {protocol}")
    protocol = protocol or ("kth" if head in ("dense", "mlp") else "cached")
    return protocol, head or ("mlp" if protocol == "kth" else "linear")


def check_options(
    protocol: Protocol,
    optimizer: ProbeOptimizer | None,
    epochs: int | None,
    batch_size: int | None,
    layers: bool,
    baselines: bool,
) -> None:
    """Refuse options that another one leaves without effect."""
    if protocol != "cached" and optimizer is not None:
        raise UserError(f"--protocol {protocol} has its own optimiser; leave out --optimizer")
    if protocol != "cached" and layers:
        asked = "--protocol kth and --head" if protocol == "kth" else f"--protocol {protocol}"
        raise UserError(f"--layers probes cached features; leave out {asked}")
    if layers and baselines:
        raise UserError("--layers maps the run's own encoder; leave out --baselines")
    if protocol == "cached" and optimizer in (None, "lbfgs") and (epochs or batch_size):
        raise UserError("lbfgs takes all images at once; --epochs and --batch-size need --optimizer sgd or lars")
