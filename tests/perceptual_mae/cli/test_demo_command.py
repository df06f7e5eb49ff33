"""`pmae demo`: what it serves and writes, what it refuses, and how it ends."""

import csv
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from perceptual_mae import masking
from perceptual_mae.cli import main
from perceptual_mae.demo.methods import open_methods
from perceptual_mae.pages.local_server import HOST, LocalServer
from perceptual_mae.seeding import stream
from running_demo import make_run, make_runs, png, serving


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        return str(taken.getsockname()[1])


def content_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    assert match
    content: dict[str, Any] = json.loads(match[1])
    return content


def test_a_shared_page_holds_the_answers_that_a_server_gives(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "shared"
    assert main(["demo", *map(str, runs), "--count", "2", "--share-folder", str(out)]) == 0
    assert f"written to {out / 'index.html'}" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["index.html"]
    page = (out / "index.html").read_text()
    assert "connect-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import""", page)
    content = content_of(page)
    labels = [each["label"] for each in content["masks"]]
    assert labels == [f"{kind}, {ratio} %" for kind in ("random", "block", "grid") for ratio in (50, 75)]
    with serving(runs) as visitor:
        for number, image in enumerate(content["images"]):
            for place in (0, 5):
                mask = content["masks"][place]["mask"]
                expected = visitor.fill(f"offered-{number}", mask, 0, 1)
                got = content["answers"][number][place]
                for answer, same in zip(got, expected, strict=True):
                    assert answer["psnr"] == same["psnr"]
                    assert answer["mask"] == same["mask"]
            assert len(image["views"]) == 1


def test_photographs_are_offered_before_held_out_images(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(png())
    words = ["--image", str(tmp_path / "mine.png"), "--count", "1", "--share-folder", str(tmp_path / "out")]
    assert main(["demo", str(runs[0]), *words]) == 0
    content = content_of((tmp_path / "out/index.html").read_text())
    first, second = (image["label"] for image in content["images"])
    assert first == "mine.png"
    assert second.startswith("held-out image ")
    assert content["images"][0]["note"] == "48 x 40 pixels, scaled and cropped in the middle to 32 x 32"


def test_runs_of_other_patches_and_images_have_their_own_and_it_is_said(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b", "data.size=48", "data.image_size=48", "generator.patch_size=16")
    assert main(["demo", str(first), str(other), "--count", "1", "--share-folder", str(tmp_path / "out")]) == 0
    content = content_of((tmp_path / "out/index.html").read_text())
    assert [each["grid"] for each in content["methods"]] == [[4, 4], [3, 3]]
    assert [each["notes"] for each in content["methods"]] == [[], ["its own images of 48 x 48 pixels"]]
    assert [len(each["mask"]) for each in content["answers"][0][0]] == [16, 9]
    assert [each["view"] for each in content["methods"]] == [0, 1]
    assert len(content["images"][0]["views"]) == 2


def test_the_page_works_without_the_data_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = list[dict[str, Any]]()
    run = make_run(
        tmp_path / "run", f"data={{kind: image_folder, root: {tmp_path}/gone, size: null, num_images: null}}"
    )
    monkeypatch.setattr("perceptual_mae.demo.page.page", lambda content: [pages.append(content), "page"][1])
    with mock.patch.object(LocalServer, "serve_forever", side_effect=KeyboardInterrupt):
        assert main(["demo", str(run), "--no-browser", "--port", free_port()]) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: no held-out images of run are offered: ")
    assert "gone" in warning
    assert pages[0]["images"] == []


@pytest.mark.parametrize("options", [[], ["--no-browser"]])
def test_ctrl_c_ends_it_and_a_browser_is_opened_unless_that_is_declined(
    runs: list[Path], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with (
        mock.patch.object(LocalServer, "serve_forever", side_effect=KeyboardInterrupt),
        mock.patch("webbrowser.open") as opened,
    ):
        assert main(["demo", str(runs[0]), "--count", "0", "--port", port, *options]) == 0
    assert [call.args for call in opened.call_args_list] == ([] if options else [(f"http://127.0.0.1:{port}/",)])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        f"http://127.0.0.1:{port}/ shows the demo to this machine alone; Ctrl-C ends it",
        "ended",
    ]


def test_a_port_in_use_is_one_line_before_any_network_is_loaded(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken, mock.patch("perceptual_mae.demo.content.open_demo") as loaded:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", str(runs[0]), "--port", str(port), "--no-browser"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"pmae: --port: {port} is in use; name another one with --port"
    assert not loaded.called


@pytest.mark.slow
def test_a_signal_of_the_terminal_ends_the_process_without_a_traceback(runs: list[Path]) -> None:
    words = ["demo", str(runs[0]), "--count", "0", "--no-browser", "--port", free_port()]
    process = subprocess.Popen(
        [sys.executable, "-m", "perceptual_mae.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout is not None
    assert "Ctrl-C ends it" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "ended\n", "")


@pytest.mark.slow
def test_the_psnr_is_the_one_of_pmae_evaluate(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "training.precision=no")
    assert main(["evaluate", str(path), "--metrics", "psnr", "--limit", "3"]) == 0
    (table,) = (path / "evaluation").glob("*.csv")
    with table.open(newline="") as lines:
        expected = {int(row["index"]): float(row["masked_psnr"]) for row in csv.DictReader(lines)}
    assert len(expected) == 3
    (method,) = open_methods([path])
    images = method.run.config.data.build(method.run.config.evaluation.split)
    for index, psnr in expected.items():
        mask = masking.random((4, 4), 12, stream("evaluation mask", method.run.config.evaluation.seed, index))
        filling = method.fill(method.transform(images[index][0]), mask, (4, 4))
        assert filling.psnr == pytest.approx(psnr, abs=1e-4)
