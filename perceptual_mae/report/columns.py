"""The columns of the comparison: which number of which file, how it is headed and printed, which command makes it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from perceptual_mae.evaluation.metrics.pixels import PSNR_CEILING
from perceptual_mae.report.comparability import SUMMARY
from perceptual_mae.report.run_records import RunRecord

Read = Callable[[RunRecord], float | None]

POOLINGS = {"class": "class token", "mean": "mean pool"}
REGIONS = {
    "raw": "Reconstruction: whole output",
    "composite": "Reconstruction: visible pixels pasted in",
    "masked": "Reconstruction: hidden pixels alone",
}
"""Part of the image that a score of `pmae evaluate` is about: its table."""
NEIGHBOURS = "20"
"""DINO's number; the next best where it was not asked for."""


@dataclass(frozen=True)
class Column:
    """One score: `place` is the file it stands in (see `differences`), `published` a field of the paper's numbers."""

    key: str
    heading: str
    read: Read
    place: str
    command: str
    spec: str = ".2f"
    published: str | None = None
    published_spec: str = ".1f"
    metric: str = ""
    """Its name in the list of scores that a file says it could not have."""
    region: str = ""
    """Part of the image that it is about (of REGIONS), where the heading alone does not say it."""


def summary_columns() -> list[Column]:
    """Held-out scores at the end of training, and those of the mean colour on the same masks."""
    make = partial(Column, place=SUMMARY, command="pmae pretrain")
    return [
        make("summary.psnr_masked", "hidden PSNR, dB", partial(_summary, names=("psnr_masked",))),
        make("summary.psnr", "PSNR, dB", partial(_summary, names=("psnr",))),
        make("summary.ssim", "SSIM", partial(_summary, names=("ssim",)), spec=".3f"),
        make(
            "summary.mean_color.psnr_masked",
            "mean colour's hidden PSNR, dB",
            partial(_summary, names=("baselines", "mean_color", "psnr_masked")),
        ),
    ]


USUAL = {  # of `pmae evaluate`: heading, format, the paper's field and format
    "l1": ("L1", ".4f", "l1", ".2f"),
    "psnr": ("PSNR, dB", ".2f", "psnr", ".2f"),
    "ssim": ("SSIM", ".3f", "ssim", ".2f"),
    "ms_ssim": ("MS-SSIM", ".3f", None, ""),
    "high_frequency": ("HF error", ".4f", None, ""),
    "patch_std": ("patch spread", ".2f", None, ""),
    "lpips_alex": ("LPIPS (alex)", ".3f", None, ""),
    "is": ("IS", ".2f", "inception_score", "#.3g"),
    "fid": ("FID", ".1f", "fid", ".1f"),
    "kid": ("KID", ".4f", None, ""),
}
"""Scores by a network stand in the reports as name[network]."""

PAPERS_FORM = ("l1", "psnr", "ssim", "is", "fid")
"""What a table of whole reconstructions shows even where nobody has it yet."""


def evaluation_columns(records: Sequence[RunRecord], region: str) -> list[Column]:
    """Scores of `pmae evaluate` over one region (raw, composite, masked), a set of columns for each of its files."""
    columns = []
    for number, stem in enumerate(stems(records, lambda report: report.get("kind") == "evaluate", "evaluate")):
        is_papers = region == "raw" and not number  # the paper's numbers stand once
        region_scores = [record.scores[stem]["scores"].get(region, {}) for record in records if stem in record.scores]
        names_present = {
            name: None for scores in region_scores for name, value in scores.items() if _number(value) is not None
        }
        bases = {name.partition("[")[0] for name in names_present}
        names = [*names_present, *(name for name in PAPERS_FORM if is_papers and name not in bases)]
        for base, (heading, spec, published, published_spec) in USUAL.items():
            for name in dict.fromkeys(name for name in names if name.partition("[")[0] == base):
                network = f" [{name.partition('[')[2]}" if "[" in name else ""
                columns.append(
                    Column(
                        f"{stem}.{region}.{name}",
                        heading + network + _variant(stem, "evaluate"),
                        partial(_in_report, stem=stem, names=(region, name)),
                        stem,
                        "pmae evaluate",
                        spec,
                        published if is_papers else None,
                        published_spec,
                        name,
                        region,
                    )
                )
    return columns


def representation_columns(records: Sequence[RunRecord]) -> list[Column]:
    """Linear probes, nearest neighbours, fine-tuning: top-1 in per cent, a column for each protocol and pooling."""
    columns = []
    probes = stems(records, lambda report: report.get("protocol") in ("cached", "mae", "paper"), "probe_cached")
    # The paper's number stands once: next to the protocol that is nearest to its own.
    order = ("paper", "mae", "cached")
    nearest = min(probes, key=lambda stem: next((n for n, name in enumerate(order) if name in stem), len(order)))
    for stem in probes:
        protocol = stem.removeprefix("probe_")
        for pooling in _poolings(records, stem):
            read = partial(_in_report, stem=stem, names=("encoder", pooling, "accuracy"), scale=100)
            published = "probe_b" if stem == nearest and pooling == "class" else None
            command = "pmae probe" + (f" --protocol {protocol}" if protocol in ("mae", "paper") else "")
            heading = f"LP {protocol}, {POOLINGS.get(pooling, pooling)}"
            columns.append(Column(f"{stem}.{pooling}", heading, read, stem, command, published=published))
    for stem in filter(None, stems(records, lambda report: report.get("protocol") == "kth", "")):
        for pooling in _poolings(records, stem):
            read = partial(_in_report, stem=stem, names=("encoder", pooling, "accuracy"), scale=100)
            heading = f"KTH head{_variant(stem, 'probe_kth')}, {POOLINGS.get(pooling, pooling)}"
            columns.append(Column(f"{stem}.{pooling}", heading, read, stem, "pmae probe --protocol kth"))
    for stem in stems(records, lambda report: report.get("protocol") == "knn", "knn"):
        for pooling in _poolings(records, stem):
            count = _neighbours(records, stem, pooling)
            read = partial(_in_report, stem=stem, names=("encoder", pooling, count), scale=100)
            heading = f"{count}-NN{_variant(stem, 'knn')}, {POOLINGS.get(pooling, pooling)}"
            columns.append(Column(f"{stem}.{pooling}.{count}", heading, read, stem, "pmae knn"))
    tuned = stems(records, lambda report: report.get("kind") == "finetune", "finetune")
    pretrained = [stem for stem in tuned if not _flag(records, stem, "from_scratch")]
    for stem in tuned:
        read = partial(_in_report, stem=stem, names=("top1", "accuracy"), scale=100)
        published = "finetune_b" if stem in pretrained[:1] else None
        heading = f"FT{_variant(stem, 'finetune')}"
        columns.append(Column(f"{stem}.top1", heading, read, stem, "pmae finetune", published=published))
    return columns


def spectrum_columns(records: Sequence[RunRecord]) -> list[Column]:
    """RankMe of training features by pooling, from the file that most runs have it in; none where no run has it."""
    with_rankme = [
        (stem, pooling)
        for record in records
        for stem, report in record.scores.items()
        for pooling in report.get("spectrum", {}).get("encoder", {})
        if pooling in POOLINGS
    ]
    if not with_rankme:
        return []
    stem, _ = max(sorted(set(with_rankme)), key=with_rankme.count)
    command = "pmae knn" if stem.startswith("knn") else "pmae probe"
    poolings = dict.fromkeys(pooling for other, pooling in with_rankme if other == stem)
    return [
        Column(
            f"rankme.{stem}.{pooling}",
            f"RankMe, {POOLINGS[pooling]}",
            partial(_in_report, stem=stem, names=("encoder", pooling, "rankme"), part="spectrum"),
            stem,
            command,
            ".1f",
        )
        for pooling in poolings
    ]


def stems(records: Iterable[RunRecord], wanted: Callable[[dict[str, Any]], bool], usual: str) -> list[str]:
    """Return the names of the score files of a kind that any run has; the usual one where none has."""
    matching = {stem: None for record in records for stem, report in record.scores.items() if wanted(report)}
    return sorted(matching) or [usual]


def _summary(record: RunRecord, names: Sequence[str]) -> float | None:
    return _walk(record.summary, names)


def _in_report(
    record: RunRecord, stem: str, names: Sequence[str], scale: float = 1, part: str = "scores"
) -> float | None:
    value = _walk(record.scores.get(stem, {}).get(part), names)
    return None if value is None else scale * value


def _walk(tree: Any, names: Sequence[str]) -> float | None:
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return _number(tree)


def _number(value: Any) -> float | None:
    if isinstance(value, dict):
        value = value.get("mean")
    if value == "inf":  # a PSNR of identical images, in files written before it had a ceiling
        value = PSNR_CEILING
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _poolings(records: Sequence[RunRecord], stem: str) -> list[str]:
    reports = [record.scores[stem]["scores"].get("encoder", {}) for record in records if stem in record.scores]
    return list({name: None for report in reports for name in report}) or ["class"]


def _flag(records: Sequence[RunRecord], stem: str, name: str) -> bool:
    return any(record.scores[stem].get(name) for record in records if stem in record.scores)


def _neighbours(records: Sequence[RunRecord], stem: str, pooling: str) -> str:
    """Return the number of neighbours that all runs were scored with: 20, or the largest."""
    reports = [
        record.scores[stem]["scores"].get("encoder", {}).get(pooling, {}) for record in records if stem in record.scores
    ]
    shared = set.intersection(*(set(report) for report in reports)) if reports else {NEIGHBOURS}
    return NEIGHBOURS if NEIGHBOURS in shared or not shared else max(shared, key=int)


def _variant(stem: str, usual: str) -> str:
    """Return what a file's name says beyond the command's: other data, split or limit."""
    rest = stem.removeprefix(usual).strip("_")
    return f" ({rest})" if rest else ""
