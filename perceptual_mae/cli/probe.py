"""`pmae probe`: accuracy of a linear map, or a small head, on a frozen encoder's features."""

from typing import Annotated, Literal

import typer

from perceptual_mae.cli.options import (
    Baselines,
    Data,
    DataKeys,
    Ema,
    Folder,
    Fresh,
    Limit,
    Out,
    Scored,
    Split,
    TestLimit,
    TrustCode,
    check_run,
    read_numbers,
)
from perceptual_mae.cli.output import check_out, scoring, write_scores
from perceptual_mae.cli.representation_tables import probe_table, with_spectrum
from perceptual_mae.errors import UserError

Protocol = Literal["cached", "mae", "paper", "kth"]
Head = Literal["linear", "dense", "mlp"]
ProbeOptimizer = Literal["lbfgs", "sgd", "lars"]


def probe_command(
    folder: Folder,
    overrides: DataKeys = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            help="cached: features once, settings chosen on a part of train; mae, paper: augmented images; "
            "kth: features once, nothing chosen, scored on train, too; none: cached, or what --head needs."
        ),
    ] = None,
    head: Annotated[
        Head | None,
        typer.Option(
            help="linear: BatchNorm, linear; dense, mlp: LayerNorm, linear or MLP, by kth; none: linear, mlp of kth."
        ),
    ] = None,
    optimizer: Annotated[ProbeOptimizer | None, typer.Option(help="Of the cached protocol; none: lbfgs.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Seeds of the probe; none: 0,1,2 if cached, else 0.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Epochs of sgd, lars, mae and paper (none: 90), kth (50).")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=2, max=1_000_000, help="Batch of sgd and lars (none: 256), kth (64), mae and paper (as published)."
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Probe every block, and draw the map.")] = False,
    baselines: Baselines = False,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    test_limit: TestLimit = None,
    ema: Ema = None,
    trust_code: TrustCode = False,
    out: Out = None,
    fresh: Fresh = False,
) -> None:
    """Train linear probes on a run's frozen encoder, e.g. pmae probe runs/a --baselines.

    The same command goes on with a probe that was stopped.
    """
    check_run(folder)
    protocol, head = settle(protocol, head)
    chosen = (
        read_numbers(seeds, "--seeds", least=0) if seeds is not None else (0, 1, 2) if protocol == "cached" else (0,)
    )
    check_options(protocol, optimizer, epochs, batch_size, layers, baselines)
    check_out(out)
    from perceptual_mae.evaluation.representation.evaluate import probe_run
    from perceptual_mae.evaluation.resumption import Checkpoints
    from perceptual_mae.visualization.layer_map import draw_layer_map

    name = "probe_layers" if layers else f"probe_kth_{head}" if protocol == "kth" else f"probe_{protocol}"
    name += "" if optimizer in (None, "lbfgs") else f"_{optimizer}"
    scored = Scored(folder, overrides or [], data, split, limit, test_limit, ema, trust_code)
    with scoring(scored) as (evaluation, on_progress):
        written = out or evaluation.default_path(name)
        checkpoints = Checkpoints.of(written, fresh=fresh, log=on_progress.log)
        report = probe_run(
            evaluation.run,
            evaluation.data,
            evaluation.accelerator,
            protocol=protocol,
            optimizer=optimizer or "lbfgs",
            head=head,
            seeds=chosen,
            epochs=epochs,
            batch_size=batch_size,
            layers=layers,
            baselines=baselines,
            ema=scored.ema,
            checkpoints=checkpoints,
            on_progress=on_progress,
        )
    if layers and evaluation.is_main_process:
        title = f"{report['run']}, {report['data']}, {report['train_images']} training images"
        draw_layer_map(report["scores"]["encoder"], written.with_suffix(".png"), title=title)
    write_scores(evaluation, report, with_spectrum(probe_table), written, checkpoints=checkpoints)


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
