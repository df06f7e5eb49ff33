"""The report page: what it holds, that it asks for nothing, and what becomes of damaged folders."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import debug_config
from perceptual_mae.cli import main
from perceptual_mae.config.parsing import to_yaml
from perceptual_mae.report.comparison import compare
from perceptual_mae.report.page import document, pictures
from perceptual_mae.report.page.document import page, report
from perceptual_mae.visualization.image_grid import sheet
from run_folders import make_run, probe

BATCH = 8


def records(count: int = 6) -> list[dict[str, Any]]:
    lines = [
        {
            "epoch": 1 + step // 4,
            "step": step,
            "raw": {"mse": 1 / step},
            "weighted": {"mse": 1 / step},
            "active": ["mse"],
        }
        for step in range(1, count + 1)
    ]
    return [*lines, {"epoch": 1 + count // 4, "step": count, "evaluation": {"psnr_masked": 12.25}}]


def add_log(path: Path, *lines: dict[str, Any]) -> Path:
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines or records()))
    return path


def samples(seed: int, count: int = 3, size: int = 16) -> dict[str, torch.Tensor]:
    """Columns of a sheet; the second patch of four and the last are hidden."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    raw = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    hidden = torch.zeros(count, 1, size, size)
    hidden[..., : size // 2, size // 2 :] = 1
    hidden[..., size // 2 :, size // 2 :] = 1
    masked, composite = (torch.lerp(images, other, hidden) for other in (torch.full_like(images, 0.5), raw))
    return {"original": images, "masked": masked, "raw": raw, "composite": composite}


def add_samples(path: Path, epoch: int, seed: int = 1) -> Path:
    (path / "images").mkdir(exist_ok=True)
    sheet(samples(seed)).save(path / f"images/epoch_{epoch:04d}.png")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = make_run(tmp_path / "a", "data.image_size=16", "generator.patch_size=8", scores={"probe_cached": probe(0.5)})
    return add_samples(add_samples(add_log(path), 1), 2, seed=2)


class Elements(HTMLParser):
    """Collects the elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem:
            self.scripts.append(data)


def content_of(text: str) -> dict[str, Any]:
    held = re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)
    assert held
    content: dict[str, Any] = json.loads(held[1], parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return content


def test_the_numbers_of_the_page_are_those_of_the_files(run: Path) -> None:
    content = content_of(page(report([run])))
    drawn = content["curves"]["raw.mse"]["0"]
    assert drawn[0] == [BATCH * step for step in range(1, 7)]
    assert drawn[1] == pytest.approx([1 / step for step in range(1, 7)], rel=1e-5)
    assert content["curves"]["evaluation.psnr_masked"]["0"] == [[6 * BATCH], [12.25]]
    assert content["phases"] == [{"mse": [[0, 6 * BATCH, 1.0]]}]


def test_score_tables_are_those_that_compare_prints(run: Path) -> None:
    add_log(run, *({"step": step, "images_per_second": 100.0 + step} for step in range(4)))
    printed = {
        table.title: (table.header, [[row.label, *row.cells] for row in table.rows])
        for table in compare([run], title="").tables
    }
    content = content_of(page(report([run])))
    shown = {
        table["title"]: (table["header"], [[row["label"], *row["cells"]] for row in table["rows"]])
        for table in content["tables"]
    }
    assert shown["Representation: top-1, %"] == printed["Representation: top-1, %"]
    assert shown["Held-out scores at the end of training"] == printed["Held-out scores at the end of training"]
    assert shown["a and fillings that learn nothing"][1] == [
        ["a", "21.00", "20.00", "0.500"],
        ["mean color", "-", "12.00", "-"],
    ]
    (cost,) = content["cost"]
    assert (cost["header"], [[row["label"], *row["cells"]] for row in cost["rows"]]) == printed["Cost"]
    assert any("102" in cell or "101" in cell for cell in cost["rows"][0]["cells"])


def test_seeds_of_one_method_are_one_row_with_their_deviation_as_compare_prints(run: Path, tmp_path: Path) -> None:
    shape = ("data.image_size=16", "generator.patch_size=8", "training.seed=1")
    other = make_run(tmp_path / "b", *shape, psnr_masked=23.0, scores={"probe_cached": probe(0.75)})
    printed = {table.title: table.rows for table in compare([run, other], title="").tables}
    tables = {table["title"]: table["rows"] for table in content_of(page(report([run, other])))["tables"]}
    (row,) = tables["Held-out scores at the end of training"]
    assert row["cells"] == printed["Held-out scores at the end of training"][0].cells
    assert row["cells"][:2] == ["2", "21.50 ± 2.12"]
    assert tables["Representation: top-1, %"][0]["cells"][1] == "62.50 ± 17.68"


def test_runs_that_do_not_compare_are_shown_and_marked(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "b", "data.image_size=16", "generator.patch_size=8", "training.epochs=9")
    content = report([run, other])
    assert all(heading.startswith("≠ ") for heading in content["tables"][0]["header"][2:])
    assert any(note.startswith("images seen: ") for note in content["table_notes"])


def test_a_page_asks_for_nothing(run: Path) -> None:
    text = page(report([run]))
    without_notice = text.replace("https://github.com/leeoniya/uPlot (v1.6.32)", "")
    assert "leeoniya" not in without_notice
    assert not re.search(r"https?://", without_notice)
    for tag, attributes in Elements(text).tags:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form"}
        assert {"src", "srcset", "action"}.isdisjoint(attributes)
        assert attributes.get("href", "data:,") == "data:,"
    policy = next(attrs["content"] for tag, attrs in Elements(text).tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy
    assert "connect-src 'self'" in page(report([run]), live=True)


def test_the_notice_of_the_library_is_on_the_page(run: Path) -> None:
    text = page(report([run]))
    assert "Copyright (c) 2022 Leon Sorokin" in text
    assert "Permission is hereby granted, free of charge" in text


HOSTILE = "</script><script>alert(1)</script>%%SCRIPT%%<!--&\u2028"


def test_what_users_typed_stays_text(run: Path) -> None:
    other = shutil.copytree(run, run.parent / "b<img src=x onerror=alert(1)>")
    (other / "log.txt").write_text(f"2026-01-01 00:00:00 WARNING step 2: {HOSTILE[:-1]}\n")
    content = report([run, other], title=HOSTILE)
    text = page(content)
    plain = page(report([run]))
    tags, usual = ([tag for tag, _ in Elements(each).tags] for each in (text, plain))
    assert tags == usual
    held = content_of(text)
    (raw,) = re.findall(r'id="content">(.*?)</script>', text, re.DOTALL)
    assert not re.search("[<>&\u2028]", raw)  # `</script ` would end the element, too
    assert held["title"] == HOSTILE
    assert held["runs"][1]["name"] == other.name
    assert held["alarms"][0]["message"] == HOSTILE[:-1]


def test_no_script_makes_elements_of_text() -> None:
    for path in (Path(document.__file__).parent / "assets").glob("*.js"):
        if not path.name.startswith("uPlot"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", path.read_text()
            )


def test_sections_without_data_are_empty_on_the_page(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text(to_yaml(debug_config("mse")))
    content = content_of(page(report([bare])))
    for name in ("curves", "alarms", "ranked", "attention", "samples", "tables", "cost"):
        assert not content[name], name
    assert content["phases"] == [{}]
    (note,) = content["notes"]
    assert "no table of scores of bare" in note
    assert "has neither a summary nor a whole checkpoint yet" in note
    assert "It has not been trained here" in content["runs"][0]["words"]


def test_images_of_a_sheet_are_cut_as_they_were_drawn(run: Path) -> None:
    held = content_of(page(report([run])))["samples"]
    (scene,) = held["scenes"]
    assert (scene["size"], scene["grid"], scene["masks"]) == ([16, 16], [2, 2], ["0101"] * 3)
    assert [(each["epoch"], each["seen"]) for each in held["snapshots"]] == [(1, 3 * BATCH), (2, 6 * BATCH)]
    expected = [pictures.encode(pictures.to_uint8(samples(seed)["raw"])) for seed in (1, 2)]
    assert [each["raw"] for each in held["snapshots"]] == expected
    assert scene["original"] == pictures.encode(pictures.to_uint8(samples(1)["original"]))


def test_runs_with_the_same_images_and_masks_share_a_scene(run: Path) -> None:
    other = shutil.copytree(run, run.parent / "b")
    held = report([run, other])["samples"]
    assert len(held["scenes"]) == 1
    assert {each["run"] for each in held["snapshots"]} == {0, 1}


def test_pictures_that_are_no_sheets_are_left_out_with_a_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2**18)
    Image.new("RGB", (600, 600)).save(run / "images/epoch_0001.png")
    (run / "images/epoch_0002.png").write_bytes((run / "images/epoch_0002.png").read_bytes()[:300])
    (run / "images/attention_00000006.png").write_text("no picture")
    content = report([run])
    assert content["samples"] == {}
    assert content["attention"] == []
    assert [note.partition(": left out")[0].rpartition("/")[2] for note in content["notes"]] == [
        "attention_00000006.png",
        "epoch_0001.png",
        "epoch_0002.png",
    ]


def add_attention(path: Path, maps: Image.Image) -> Path:
    views = torch.rand(4 + 1, 2, 3, 16, 16)
    names = ["original", "mean", "head 1", "head 2", "kept"]
    sheet(dict(zip(names, views, strict=True))).save(path / "images/attention_00000006.png")
    maps.save(path / "images/attention_by_patch_00000006.png")
    return path


def test_what_each_patch_attends_to_is_on_the_page_of_its_own_step(run: Path) -> None:
    add_attention(run, Image.new("L", (4, 4), 7))
    (run / "images/attention_by_patch_00000005.png").write_text("of an earlier step")
    (held,) = report([run])["attention"]
    assert (held["file"], held["mapped"]) == ("attention_00000006.png", 1)
    with Image.open(io.BytesIO(base64.b64decode(held["patches"].partition(",")[2]))) as picture:
        assert (picture.mode, picture.size, picture.getextrema()) == ("L", (4, 4), (7, 7))


@pytest.mark.parametrize("size", [(4, 6), (3, 8), (9, 9)])
def test_maps_of_other_patches_are_left_out_with_a_sentence(run: Path, size: tuple[int, int]) -> None:
    content = report([add_attention(run, Image.new("L", size))])
    assert "patches" not in content["attention"][0]
    (note,) = content["notes"]
    reason = f"{size[0]}x{size[1]} pixels are no maps of 4 patches"
    assert note.endswith(f"attention_by_patch_00000006.png: left out ({reason})")


def test_maps_of_patches_that_are_too_large_cost_themselves_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_attention(run, Image.effect_noise((4, 8), 90))
    (held,) = report([run])["attention"]
    monkeypatch.setattr(document, "PICTURES", sum(map(len, held["views"].values())))
    (alone,) = report([run])["attention"]
    assert "patches" not in alone
    assert "mapped" not in alone


def test_the_best_and_worst_images_carry_their_scores(run: Path) -> None:
    columns = samples(3, count=4)
    (run / "evaluation").mkdir(exist_ok=True)
    sheet(columns, ["note"] * 4).save(run / "evaluation/evaluate.png")
    lines = ["index,file,masked_psnr", "3,d.png,10.5", "0,a.png,30.25", "1,b.png,", "2,c.png,20", "7,e.png,12"]
    (run / "evaluation/evaluate.csv").write_text("\n".join([*lines, ""]))
    scores = {"kind": "evaluate", "scores": {"raw": {}}, "pictures": "evaluate.png", "unavailable": {}}
    step = json.loads((run / "summary.json").read_text())["steps"]
    (run / "evaluation/evaluate.json").write_text(json.dumps(scores | {"step": step}))
    (ranked,) = report([run])["ranked"]
    assert ranked["labels"] == [
        "best 1, image 0 (a.png), 30.25 dB",
        "best 2, image 2 (c.png), 20.00 dB",
        "worst 2, image 7 (e.png), 12.00 dB",
        "worst 1, image 3 (d.png), 10.50 dB",
    ]
    assert ranked["masks"] == ["0101"] * 4


@pytest.mark.parametrize("file", ["summary.json", "environment.json", "evaluation/probe_cached.json"])
def test_a_damaged_record_costs_the_tables_alone(run: Path, file: str) -> None:
    (run / file).write_text('{"broken": ')
    content = report([run])
    assert content["tables"] == []
    assert any(file in note and "is no JSON" in note for note in content["notes"])
    assert content["curves"]["raw.mse"]


@pytest.mark.parametrize("file", ["summary.json", "environment.json", "evaluation/probe_cached.json"])
@pytest.mark.parametrize(
    "text", ["[1]", "null", '{"steps": "x", "scores": {"encoder": 3}, "versions": 4, "history": 1}']
)
def test_records_of_another_form_leave_a_page(run: Path, file: str, text: str) -> None:
    (run / file).write_text(text)
    assert content_of(page(report([run])))["curves"]["raw.mse"]


def test_configurations_mark_what_differs(run: Path, tmp_path: Path) -> None:
    other = add_log(make_run(tmp_path / "b", "data.image_size=16", "generator.patch_size=8", "optimizer.lr=0.5"))
    rows = {row["key"]: row for row in report([run, other])["configuration"]}
    assert rows["optimizer.lr"]["values"][1] == "0.5"
    assert [key for key, row in rows.items() if row["differs"]] == ["optimizer.lr"]


def test_pictures_are_thinned_to_the_budget_with_the_first_and_the_last(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_log(run, *({"epoch": epoch, "step": epoch} for epoch in range(1, 13)))
    for epoch in range(1, 13):
        add_samples(run, epoch, seed=epoch)
    one = len(report([run])["samples"]["snapshots"][0]["raw"])
    monkeypatch.setattr(document, "PICTURES", 6 * one)
    content = report([run])
    epochs = [each["epoch"] for each in content["samples"]["snapshots"]]
    assert epochs[0] == 1
    assert epochs[-1] == 12
    assert 2 < len(epochs) < 6
    assert any("of 12 sheets of samples fit on the page" in note for note in content["notes"])


def test_a_page_stays_under_three_megabytes_however_much_was_logged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"t{number}" for number in range(60)]
    lines = [
        {"epoch": 1, "step": step, "raw": dict.fromkeys(keys, step * 7919 % 104729 / 3)} for step in range(1, 2001)
    ]
    add_log(run, *lines)
    assert len(page(report([run]))) < 3_000_000 - document.PICTURES


def test_of_very_many_keys_the_first_are_drawn_with_a_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MOST_KEYS", 3)
    add_log(run, {"epoch": 1, "step": 1, "raw": {f"t{number}": number for number in range(5)}})
    content = report([run])
    assert list(content["curves"]) == ["raw.t0", "raw.t1", "raw.t2"]
    assert "3 of 5 keys of metrics.jsonl are drawn" in content["notes"]


def call(*words: str | Path) -> int:
    return main(["report", *map(str, words)])


def test_the_command_writes_one_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "reports/of a.html"
    assert call(run, "--out", out, "--title", "Mine") == 0
    assert content_of(out.read_text())["title"] == "Mine"
    assert f"written to {out}: 0." in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "does not exist"),
        (["."], "is not a run folder"),
        (["a", "a"], "is named twice"),
        (["a", "--out", "report.pdf"], "is no file that ends in .html or .htm"),
        (["a", "--port", "80"], "--port is that of --live"),
        (["a", "--live", "--out", "x.html"], "--live serves the page and writes no file"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    assert call(*words) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert message in printed
    assert not list(run.parent.glob("*.html"))
