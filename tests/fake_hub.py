"""A server of our own in the hub's place: it answers by the repository's name."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from essential_sparsity import hub


class Answers(BaseHTTPRequestHandler):
    """Answer by the repository's name: `busy/…` is busy twice, others say no for ever."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        codes = {"busy": 429, "never": 503, "gone": 404, "gated": 403}
        name = next((name for name in codes if f"/{name}/" in self.path), "gone")
        if "/models/" in self.path or "/datasets/" in self.path:  # the library has questions of its own
            self.asked.append(name)
        code = codes[name]
        if code == 429 and len(self.asked) > 2:
            return self.answer(200, b'{"id": "busy/model", "sha": "abc123"}')
        errors = {"gone": "RepoNotFound", "gated": "GatedRepo"}
        told = {"X-Error-Code": errors[name]} if name in errors else {}
        return self.answer(code, b"{}", **told)

    def answer(self, code, body, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format, *args):
        """Be quiet."""


@contextlib.contextmanager
def running(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[list[float]]:
    """Put the server in the hub's place, with an empty cache; give the waits between tries, which take no time."""
    found: list[float] = []
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Answers.asked.clear()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", place)
    monkeypatch.setattr(hub.time, "sleep", found.append)
    yield found
    server.shutdown()
    server.server_close()
