"""The paper's rows, missing scores, marks; Markdown and LaTeX that survive any name."""

from pathlib import Path

import pytest

from perceptual_mae.report.comparison import compare
from perceptual_mae.report.formats import escape, to_latex, to_markdown
from perceptual_mae.report.tables import Row, Table
from run_folders import evaluate, make_run, probe

TABLE = Table(
    "50% & more", ["", "n", "≠ A_1"], [Row("a|b_c", ["1", "2 ± 1"]), Row("paper: X", ["", "-"], True)], ["so #1"]
)


def rows_of(found, title):
    (table,) = [table for table in found.tables if table.title == title]
    return {row.label: dict(zip(table.header[1:], row.cells, strict=True)) for row in table.rows}, table


def test_the_papers_row_stands_below_its_method_and_below_no_other(tmp_path: Path):
    paths = [make_run(tmp_path / "a", "ls_gan_p"), make_run(tmp_path / "b", "l1")]
    rows, _ = rows_of(compare(paths, title="t"), "Reconstruction: whole output")
    assert list(rows) == ["LS-GAN-P", "paper: LS-GAN-P", "L1"]
    assert list(rows["paper: LS-GAN-P"].values()) == ["", "0.16", "0.53", "0.92", "16.2", "28.2"]
    rows, _ = rows_of(compare(paths, title="t"), "Representation: top-1, %")
    assert rows["paper: LS-GAN-P"]["LP cached, class token"] == "72.5"
    assert rows["paper: LS-GAN-P"]["FT"] == "84.5"


def test_scores_of_evaluate_stand_under_their_names_and_networks(tmp_path: Path):
    report = evaluate(
        {"l1": 0.1234, "psnr": 20.5, "fid[inception]": 33.25},
        unavailable={"ssim": "too small", "is[inception]": "too few"},
    )
    rows, table = rows_of(
        compare([make_run(tmp_path / "a", scores={"evaluate": report})], title="t"), "Reconstruction: whole output"
    )
    assert rows["MSE"]["L1"] == "0.1234"
    assert rows["MSE"]["FID [inception]"] == "33.2"
    assert rows["paper: MSE"]["FID [inception]"] == "42.7"
    assert rows["MSE"]["SSIM"] == "-"
    assert table.notes == ["no SSIM: too small", "no IS: too few"]


def test_a_score_of_identical_images_from_before_psnr_had_a_ceiling_is_the_ceiling(tmp_path: Path):
    runs = [
        make_run(tmp_path / "old", scores={"evaluate": evaluate({"psnr": "inf"})}),
        make_run(tmp_path / "new", "l1", scores={"evaluate": evaluate({"psnr": 100.0})}),
    ]
    rows, _ = rows_of(compare(runs, title="t"), "Reconstruction: whole output")
    assert rows["MSE"]["PSNR, dB"] == rows["L1"]["PSNR, dB"] == "100.00"


def test_trained_heads_have_columns_of_their_own_and_no_number_of_the_paper_with_them(tmp_path: Path):
    scores = {"probe_kth_mlp": probe(0.5, protocol="kth"), "probe_kth_dense": probe(0.25, protocol="kth")}
    rows, _ = rows_of(compare([make_run(tmp_path / "a", scores=scores)], title="t"), "Representation: top-1, %")
    assert rows["MSE"]["KTH head (mlp), class token"] == "50.00"
    assert rows["MSE"]["KTH head (dense), class token"] == "25.00"
    assert rows["paper: MSE"]["KTH head (mlp), class token"] == "-"
    assert rows["MSE"]["LP cached, class token"] == "-"


def test_missing_scores_are_dashes_with_the_command_that_makes_them(tmp_path: Path):
    run = make_run(tmp_path / "a")
    rows, table = rows_of(compare([run], title="t"), "Representation: top-1, %")
    assert set(rows["MSE"].values()) == {"1", "-"}
    assert table.notes == [f"not there yet: `pmae {name} {run}`" for name in ("probe", "knn", "finetune")]


@pytest.mark.parametrize(
    ("facts", "mark", "note"),
    [
        ({"uses_target_statistics": True}, "*", "norm_pix"),
        ({"learns_visible_pixels": False}, "†", "trained on hidden patches alone"),
    ],
)
def test_scores_that_are_not_what_they_seem_are_marked(facts, mark, note, tmp_path: Path):
    run = make_run(tmp_path / "a", scores={"evaluate": evaluate({"l1": 0.5}, **facts)})
    rows, table = rows_of(compare([run], title="t"), "Reconstruction: whole output")
    assert rows["MSE"]["L1"] == f"0.5000 {mark}"
    assert any(line.startswith(mark) and note in line for line in table.notes)


def test_neighbours_are_those_that_all_runs_were_scored_with(tmp_path: Path):
    counts = ({"10": 0.1, "20": 0.2}, {"10": 0.3, "50": 0.4})
    paths = [
        make_run(tmp_path / str(seed), f"training.seed={seed}", scores={"knn": {"protocol": "knn", "scores": scores}})
        for seed, scores in enumerate({"encoder": {"mean": found}} for found in counts)
    ]
    rows, _ = rows_of(compare(paths, title="t"), "Representation: top-1, %")
    assert rows["MSE"]["10-NN, mean pool"] == "20.00 ± 14.14"  # 10 and 30


def test_rankme_of_features_has_a_table_of_its_own_where_a_run_has_it(tmp_path: Path):
    title = "Representation: effective rank of features"
    spectrum = {"encoder": {"class": {"rankme": 12.34, "alpha_req": None}}, "raw pixels": {"pixels": {"rankme": 3.0}}}
    layers = {"protocol": "layers", "scores": {}, "spectrum": {"encoder": {"class/1": {"rankme": 1.0}}}}
    paths = [
        make_run(tmp_path / "a", scores={"probe_cached": probe(0.5, spectrum=spectrum), "probe_layers": layers}),
        make_run(tmp_path / "b", "l1", scores={"probe_cached": probe(0.5)}),  # of before there was any
    ]
    compared = compare(paths, title="t")
    rows, table = rows_of(compared, title)
    assert (rows["MSE"], rows["L1"]) == (
        {"n": "1", "RankMe, class token": "12.3"},
        {"n": "1", "RankMe, class token": "-"},
    )
    assert table.notes == [f"not there yet: `pmae probe {paths[1]}`"]
    assert "rankme.probe_cached.class" not in [each.column.key for each in compared.together("probe")]  # no accuracy
    assert title not in [table.title for table in compare(paths[1:], title="t").tables]


def test_files_of_other_data_splits_or_limits_are_columns_of_their_own(tmp_path: Path):
    scores = {"probe_cached": probe(0.5), "probe_mae": probe(0.75, protocol="mae"), "probe_cached_500": probe(0.25)}
    rows, _ = rows_of(compare([make_run(tmp_path / "a", scores=scores)], title="t"), "Representation: top-1, %")
    assert [rows["MSE"][f"LP {name}, class token"] for name in ("cached", "cached_500", "mae")] == [
        "50.00",
        "25.00",
        "75.00",
    ]
    # The paper's number stands once, beside the protocol that is nearest to its own.
    assert [rows["paper: MSE"][f"LP {name}, class token"] for name in ("cached", "cached_500", "mae")] == [
        "-",
        "-",
        "67.8",
    ]


def test_latex_escapes_every_letter_that_means_something_to_it():
    assert escape("a_b & 50% $x^2 #1 {y} ~ \\z") == (
        r"a\_b \& 50\% \$x\textasciicircum{}2 \#1 \{y\} \textasciitilde{} \textbackslash{}z"
    )
    page = to_latex("runs_1\nnext", [TABLE], ["a\nb"])
    lines = page.splitlines()
    assert r"\caption{runs\_1 next: 50\% \& more}" in lines
    assert r"a\textbar{}b\_c & 1 & 2 $\pm$ 1 \\" in lines
    assert r"\textit{paper: X} &  & -- \\" in lines
    assert r" & n & $\neq$ A\_1 \\" in lines
    assert [line for line in lines if line.startswith("%")][1:] == ["% a b", "% so #1"]
    assert r"\begin{tabular}{lrr}" in lines


def test_markdown_escapes_bars_and_sets_the_papers_rows_off():
    lines = to_markdown("T", [TABLE], ["n"]).splitlines()
    assert lines[:3] == ["# T", "", "## 50% & more"]
    assert lines[6] == r"| a\|b_c     | 1 | 2 ± 1 |"
    assert lines[7] == "| *paper: X* |   | -     |"
    assert lines[-1] == "- n"
