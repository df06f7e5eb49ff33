"""A demo of debug-size runs, its server, and visitors of it."""

import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from conftest import debug_config
from perceptual_mae.config.build import build_generator
from perceptual_mae.demo.content import content_of, open_demo
from perceptual_mae.demo.page import page
from perceptual_mae.demo.requests import Demo
from perceptual_mae.pages.local_server import HOST, make_server
from perceptual_mae.run import checkpoint, folder


def make_run(path: Path, *overrides: str) -> Path:
    """A run folder of debug size whose generator has random weights."""
    config = debug_config("mse", *overrides)
    path.mkdir(parents=True)
    folder.describe(path, config, "cpu", "no")
    generator = build_generator(config.generator, config.data.image, config.training.seed)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    checkpoint.save(path / "checkpoints", 4, {"generator": generator.state_dict()}, {"step": 4, "images_seen": 32})
    return path


def make_runs(parent: Path) -> list[Path]:
    """Two runs of 32 px, with 4 x 4 and with 8 x 8 patches."""
    return [make_run(parent / "coarse"), make_run(parent / "fine <b>", "generator.patch_size=4")]


def png(size: tuple[int, int] = (48, 40)) -> bytes:
    """A photograph of noise, as a visitor sends it."""
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


class Visitor:
    """Asks a server, and reads its answers."""

    def __init__(self, demo: Demo, port: int) -> None:
        self.demo, self.port = demo, port

    def ask(
        self, path: str, body: Any = None, *, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection(HOST, self.port, timeout=20)
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def post(self, path: str, body: bytes | dict[str, Any]) -> tuple[int, dict[str, Any]]:
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer, content = self.ask(path, encoded)
        return answer.status, json.loads(content)

    def fill(self, image: str, mask: str, *methods: int) -> list[dict[str, Any]]:
        status, answer = self.post("/answer", {"image": image, "mask": mask, "methods": list(methods)})
        assert status == 200, answer
        answers: list[dict[str, Any]] = answer["answers"]
        return answers


@contextmanager
def serving(paths: list[Path], *, count: int = 2) -> Iterator[Visitor]:
    """Serve a demo of runs, on any free port."""
    demo, notes = open_demo(paths, [], count)
    assert notes == []
    server = make_server(demo.routes(page(content_of(demo, live=True))), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Visitor(demo, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
