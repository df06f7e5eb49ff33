"""An HTTP server for this machine alone: a table of addresses, and none of them a file of the disk."""

import errno
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from perceptual_mae.errors import UserError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""What a browser may call this machine. By any other name a page of another site would reach the server."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
PATIENCE = 30
"""Seconds that a visitor may be silent in the middle of a request."""
PATIENCE_WITH_REFUSED = 10
"""Seconds in which the body of a refused request is read and dropped: a client reads no answer while it still sends."""

logger = logging.getLogger(__name__)


class Refusal(Exception):  # noqa: N818  (an answer, not an error of the server's)
    """A request that is not answered, with the status and a sentence for the visitor."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Route:
    """What answers an address: a function from a body of at most `largest` bytes to the answer and its type."""

    answer: Callable[[bytes], str]
    kind: str = "application/json"
    largest: int = 0


class LocalServer(ThreadingHTTPServer):
    """A thread a request; what a visitor breaks off is no message in the terminal."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request was broken off", exc_info=True)


def make_server(routes: Mapping[tuple[str, str], Route], port: int) -> LocalServer:
    """Return a server of routes by method and exact path, at 127.0.0.1; UserError where the port cannot be had."""

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE
        unread: float = 0
        """Bytes of the body that have not been read."""

        def do_GET(self) -> None:
            self.respond()

        def do_POST(self) -> None:
            self.respond()

        def respond(self) -> None:
            """Answer by the table; every refusal is a sentence in JSON."""
            stated = self.headers.get("Content-Length", "")
            is_stated = stated.isascii() and stated.isdigit() and len(stated) < 20
            self.unread = 0 if self.command == "GET" else int(stated) if is_stated else math.inf
            try:
                self.check_visitor()
                route = routes.get((self.command, self.path))
                if route is None:
                    raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing at this address")
                self.send(HTTPStatus.OK, route.kind, route.answer(self.body(route.largest)))
            except Refusal as refused:
                self.refuse(refused.status, str(refused))
            except UserError as mistake:
                self.refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(mistake))
            except MemoryError:
                self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "this needs more memory than there is")
            except (ConnectionError, TimeoutError):
                raise
            except Exception:
                logger.exception("a request could not be answered")
                self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "this could not be answered; the terminal says why")

        def check_visitor(self) -> None:
            """Refuse pages of other sites, by a name of theirs that leads here or by what their scripts send."""
            host = self.headers.get("Host", "")
            if host.partition(":")[0] not in NAMES:
                raise Refusal(HTTPStatus.FORBIDDEN, f"this server answers to {' and '.join(NAMES)} alone")
            if self.headers.get("Origin", f"http://{host}") != f"http://{host}":
                raise Refusal(HTTPStatus.FORBIDDEN, "this server answers to its own page alone")

        def body(self, largest: int) -> bytes:
            if self.unread == math.inf:
                raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
            length = int(self.unread)
            if length > largest:
                sentence = f"{length:,} bytes are more than {largest:,}, the limit"
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)
            self.unread = 0
            try:
                body = self.rfile.read(length)
            except TimeoutError:
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request took too long") from None
            if len(body) < length:
                raise Refusal(HTTPStatus.BAD_REQUEST, f"the request broke off after {len(body):,} of {length:,} bytes")
            return body

        def refuse(self, status: int, sentence: str) -> None:
            """Answer with a sentence, then read and forget what the client still sends."""
            self.send(status, "application/json", json.dumps({"error": sentence}))
            end = time.monotonic() + PATIENCE_WITH_REFUSED
            self.connection.settimeout(1)
            with suppress(OSError):
                while self.unread > 0 and time.monotonic() < end and (part := self.rfile.read1(2**20)):
                    self.unread -= len(part)

        def send(self, status: int, kind: str, text: str) -> None:
            body, tag = text.encode(), {}
            if self.command == "GET" and status == HTTPStatus.OK:
                tag = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}
                if self.headers.get("If-None-Match") == tag["ETag"]:
                    status, body = HTTPStatus.NOT_MODIFIED, b""
            self.send_response(status)
            for name, value in {**HEADERS, **tag, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            """Refuse what is no HTTP request, or of another method."""
            self.refuse(code, message or HTTPStatus(code).phrase)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing: a page that refreshes, or follows a brush, would fill the terminal."""

    try:
        return LocalServer((HOST, port), Handler)
    except OSError as failure:
        why = "is in use" if failure.errno == errno.EADDRINUSE else f"cannot be used ({failure.strerror})"
        raise UserError(f"--port: {port} {why}; name another one with --port") from failure


def serve(
    server: LocalServer, what: str, say: Callable[[str], None], when_ready: Callable[[str], object] = str
) -> None:
    """Say where the server shows what, call `when_ready` with the address, and answer requests until Ctrl-C."""
    address = f"http://{HOST}:{server.server_port}/"
    try:
        say(f"{address} shows {what}; Ctrl-C ends it")
        when_ready(address)
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
