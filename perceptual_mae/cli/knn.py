"""`pmae knn`: nearest neighbours among a frozen encoder's features; nothing is trained."""

from typing import Annotated

import typer

from perceptual_mae.cli.options import (
    Baselines,
    Data,
    DataKeys,
    Ema,
    Folder,
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
from perceptual_mae.cli.representation_tables import knn_table, with_spectrum


def knn_command(
    folder: Folder,
    overrides: DataKeys = None,
    neighbours: Annotated[str, typer.Option(metavar="K,K,...", help="Numbers of neighbours.")] = "10,20,100,200",
    temperature: Annotated[
        float, typer.Option(min=1e-2, max=1e6, help="Votes count exp(cosine / temperature).")
    ] = 0.07,
    baselines: Baselines = False,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    test_limit: TestLimit = None,
    ema: Ema = None,
    trust_code: TrustCode = False,
    out: Out = None,
) -> None:
    """Classify by the nearest neighbours among a run's frozen features, e.g. pmae knn runs/a."""
    check_run(folder)
    counts = read_numbers(neighbours, "--neighbours", least=1)
    check_out(out)
    from perceptual_mae.evaluation.representation.evaluate import knn_run

    scored = Scored(folder, overrides or [], data, split, limit, test_limit, ema, trust_code)
    with scoring(scored) as (evaluation, on_progress):
        report = knn_run(
            evaluation.run,
            evaluation.data,
            evaluation.accelerator,
            neighbours=counts,
            temperature=temperature,
            baselines=baselines,
            ema=scored.ema,
            on_progress=on_progress,
        )
    write_scores(evaluation, report, with_spectrum(knn_table), out or evaluation.default_path("knn"))
