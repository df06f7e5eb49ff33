"""The tutorial notebook runs from top to bottom without a network, and holds little."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from test_docs import ROOT

NOTEBOOK = ROOT / "docs/tutorial.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]


def test_it_is_small_and_names_no_folder_of_a_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/", text)
    outputs = [output for cell in CELLS for output in cell.get("outputs", [])]
    assert outputs
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)


def test_its_links_lead_somewhere() -> None:
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert (NOTEBOOK.parent / target).exists(), target


@pytest.mark.slow
def test_it_runs_and_the_encoder_says_more_than_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(CELLS):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    printed = dict(re.findall(r"^(\S.*\S) +([\d.]+) (?:dB|%)", capsys.readouterr().out, re.MULTILINE))
    scores = {name.strip(): float(value) for name, value in printed.items()}
    assert scores["this run"] > scores["mean_color"]
    assert scores["encoder"] > scores["untrained encoder"] > scores["pixels"]
