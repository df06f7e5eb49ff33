"""The report served at 127.0.0.1 while its runs go on: two addresses, made of what the folders hold when asked."""

import errno
import hashlib
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from perceptual_mae.errors import UserError
from perceptual_mae.report.page.document import page, report, to_script

HOST = "127.0.0.1"
READ = ("config.yaml", "metrics.jsonl", "summary.json", "environment.json", "log.txt", "images/*.png", "evaluation/*")
"""Files of a run folder whose change makes a new report."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class LiveReport:
    """The newest report of run folders that change. What cannot be read now leaves the last one as it was."""

    def __init__(self, paths: Sequence[Path], title: str) -> None:
        self._paths, self._title = list(paths), title
        self._lock = threading.Lock()
        self._state: Any = None
        self._content = report(self._paths, title=title)

    def content(self) -> dict[str, Any]:
        """Return what the page shows; under `failure` why the folders cannot be read now, where they cannot."""
        with self._lock:
            if (state := self._files()) != self._state:
                try:
                    self._content = report(self._paths, title=self._title)
                except (UserError, OSError, UnicodeDecodeError) as failure:
                    self._content = {**self._content, "failure": f"Shown as it was before: {failure}"}
                self._state = state
            return self._content

    def _files(self) -> list[tuple[str, int, int]]:
        """Return name, size and time of every file that is read."""
        states = []
        for file in sorted(file for path in self._paths for pattern in READ for file in path.glob(pattern)):
            try:
                status = file.stat()
            except OSError:  # it is being replaced
                continue
            states.append((str(file), status.st_size, status.st_mtime_ns))
        return states


class _Server(ThreadingHTTPServer):
    """A server that a reader may leave in the middle of an answer."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def make_server(live: LiveReport, port: int) -> ThreadingHTTPServer:
    """Return a server of the page at `/` and of its contents at `/content.json`; UserError where the port is in use."""

    class Handler(BaseHTTPRequestHandler):
        """Knows two addresses; whatever else is asked for is no file of the disk."""

        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost"):  # a page of another site, by a name that leads here
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                self.answer(page(live.content(), live=True), "text/html; charset=utf-8")
            elif self.path == "/content.json":
                self.answer(to_script(live.content()), "application/json")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def answer(self, text: str, kind: str) -> None:
            body = text.encode()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            is_known = self.headers.get("If-None-Match") == tag
            self.send_response(HTTPStatus.NOT_MODIFIED if is_known else HTTPStatus.OK)
            for name, value in {**HEADERS, "ETag": tag, "Content-Type": kind}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0" if is_known else str(len(body)))
            self.end_headers()
            if not is_known:
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing: a page that refreshes would fill the terminal."""

    try:
        return _Server((HOST, port), Handler)
    except OSError as failure:
        why = "is in use" if failure.errno == errno.EADDRINUSE else f"cannot be used ({failure.strerror})"
        raise UserError(f"--port: {port} {why}; name another one with --port") from failure


def serve(paths: Sequence[Path], title: str, port: int, say: Callable[..., None]) -> None:
    """Serve the report until Ctrl-C."""
    with make_server(LiveReport(paths, title), port) as server:
        say(f"http://{HOST}:{server.server_port}/ shows the report while the runs go on; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
