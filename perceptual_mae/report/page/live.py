"""The report served at 127.0.0.1 while its runs go on: two addresses, made of what the folders hold when asked."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from perceptual_mae.errors import UserError
from perceptual_mae.pages.html_page import to_script
from perceptual_mae.pages.local_server import LocalServer, Route, make_server, serve
from perceptual_mae.report.page.document import page, report

READ = ("config.yaml", "metrics.jsonl", "summary.json", "environment.json", "log.txt", "images/*.png", "evaluation/*")
"""Files of a run folder whose change makes a new report."""


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


def make_live_server(live: LiveReport, port: int) -> LocalServer:
    """Return a server of the page at `/` and of its contents at `/content.json`; UserError where the port is in use."""
    routes = {
        ("GET", "/"): Route(lambda _: page(live.content(), live=True), "text/html; charset=utf-8"),
        ("GET", "/content.json"): Route(lambda _: to_script(live.content())),
    }
    return make_server(routes, port)


def serve_live(paths: Sequence[Path], title: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the report until Ctrl-C."""
    with make_live_server(LiveReport(paths, title), port) as server:
        serve(server, "the report while the runs go on", say)
