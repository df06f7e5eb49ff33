"""Figures of a comparison: what does not compare is not drawn as if it did."""

from pathlib import Path
from typing import Any

import pytest

from perceptual_mae.report import figures as pictures
from perceptual_mae.report.comparison import RunComparison, compare
from run_folders import make_run, probe


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures as they are when they would be written."""
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    return drawn


def both_poolings(accuracy: float) -> dict[str, Any]:
    report = probe(accuracy)
    report["scores"]["encoder"]["mean"] = report["scores"]["encoder"]["class"]
    return {"probe_cached": report}


def compared(folder: Path) -> RunComparison:
    """Plain pixels, and pixels normalised by statistics of the originals."""
    runs = [
        make_run(folder / "plain", psnr_masked=17.0, scores=both_poolings(0.5)),
        make_run(
            folder / "borrowing",
            "generator.norm_pix=true",
            psnr_masked=20.0,
            scores=both_poolings(0.4),
            uses_target_statistics=True,
        ),
    ]
    return compare(runs, title="t")


def test_a_scatter_has_a_panel_for_each_pooling_and_leaves_out_borrowed_quality(
    figures: list[Any], tmp_path: Path
) -> None:
    found = compared(tmp_path)
    across, ups = found.find("summary.psnr_masked"), found.together("probe")
    assert across is not None
    assert [up.column.heading for up in ups] == ["LP cached, class token", "LP cached, mean pool"]
    assert all(pictures.can_scatter(found.groups, across, up) for up in ups)
    pictures.draw_scatter(found.groups, across, ups, tmp_path / "scatter.png", "t")
    panels = figures[0].axes
    assert [panel.get_ylabel() for panel in panels] == [f"{up.column.heading}, top-1 %" for up in ups]
    for panel in panels:
        places = [tuple(place) for dots in panel.collections for place in getattr(dots, "get_offsets", list)()]
        assert {place[0] for place in places} == {17.0}
    assert "without MSE (normalised pixels)" in figures[0].get_suptitle()


def test_scores_that_the_tables_mark_are_hollow(figures: list[Any], tmp_path: Path) -> None:
    found = compared(tmp_path)
    across = found.find("summary.psnr_masked")
    assert across is not None
    pictures.draw_scores(found.groups, [across], tmp_path / "compare.png", "t")
    fills = [line.get_markerfacecolor() for line in figures[0].axes[0].lines if line.get_marker() == "o"]
    assert fills == ["C0", "none"]
