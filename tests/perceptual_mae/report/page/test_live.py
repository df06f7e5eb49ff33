"""The report that is served while runs go on."""

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from perceptual_mae.cli import main
from perceptual_mae.pages.local_server import HOST
from perceptual_mae.report.page.live import LiveReport, make_live_server
from run_folders import make_run


def log(path: Path, *totals: float) -> None:
    lines = [json.dumps({"epoch": 1, "step": step, "total": total}) for step, total in enumerate(totals, 1)]
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = make_run(tmp_path / "run")
    log(path, 3.0, 2.0)
    return path


class Server:
    """A server of one run, and the answers it gives."""

    def __init__(self, run: Path) -> None:
        self.server = make_live_server(LiveReport([run], ""), 0)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def ask(self, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection(HOST, self.server.server_port, timeout=20)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    def totals(self) -> list[float]:
        content: dict[str, Any] = json.loads(self.ask("/content.json")[1])
        values: list[float] = content["curves"]["total"]["0"][1]
        return values


@pytest.fixture
def server(run: Path) -> Iterator[Server]:
    server = Server(run)
    yield server
    server.server.shutdown()
    server.server.server_close()
    server.thread.join()


def test_the_page_is_served_to_this_machine_alone(server: Server) -> None:
    answer, body = server.ask("/")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"connect-src 'self'" in body
    assert server.server.server_address[0] == "127.0.0.1"
    assert server.ask("/", Host="evil.example:80")[0].status == 403


def test_what_is_logged_meanwhile_comes_with_the_next_question(server: Server, run: Path) -> None:
    assert server.totals() == [3.0, 2.0]
    log(run, 3.0, 2.0, 1.5)
    assert server.totals() == [3.0, 2.0, 1.5]
    log(run, 3.0)  # it was started again from a checkpoint
    assert server.totals() == [3.0]


def test_what_has_not_changed_is_not_sent_again(server: Server, run: Path) -> None:
    tag = server.ask("/content.json")[0].headers["ETag"]
    answer, body = server.ask("/content.json", **{"If-None-Match": tag})
    assert (answer.status, body) == (304, b"")
    log(run, 1.0)
    assert server.ask("/content.json", **{"If-None-Match": tag})[0].status == 200


def test_a_folder_that_cannot_be_read_leaves_what_was_shown_and_says_so(server: Server, run: Path) -> None:
    aside = run.with_name("aside")
    run.rename(aside)
    content = json.loads(server.ask("/content.json")[1])
    assert content["curves"]["total"]["0"][1] == [3.0, 2.0]
    assert "is not a run folder" in content["failure"]
    shutil.copytree(aside, run)
    assert "failure" not in json.loads(server.ask("/content.json")[1])


@pytest.mark.parametrize(
    "path",
    ["/config.yaml", "/../../../../etc/passwd", "/%2e%2e/config.yaml", "//etc/passwd", "/content.json/..", "/run/"],
)
def test_no_other_path_is_known(server: Server, path: str) -> None:
    answer, body = server.ask(path)
    assert answer.status == 404
    assert b"root:" not in body
    assert b"training:" not in body


def test_ctrl_c_ends_it_without_a_traceback(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(server: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    assert main(["report", str(run), "--live", "--port", str(port)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"http://127.0.0.1:{port}/ shows the report")
    assert last == "ended"


def test_a_port_in_use_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["report", str(run), "--live", "--port", str(port)]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert f"--port: {port} is in use; name another one with --port" in printed
