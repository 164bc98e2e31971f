"""A hub that is busy is asked again; one that says no is one line with a remedy. A server of our own answers here."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from essential_sparsity import hub
from essential_sparsity.inputs import hub_revision


class Answers(BaseHTTPRequestHandler):
    """Answer by the repository's name: `busy/…` is busy twice, others say no for ever."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        codes = {"busy": 429, "never": 503, "gone": 404, "gated": 403}
        name = next((name for name in codes if f"/{name}/" in self.path), "gone")
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


@pytest.fixture
def waits(monkeypatch, tmp_path):
    """Give the waits between tries, with a server in the hub's place."""
    found: list[float] = []
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Answers.asked.clear()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", place)
    monkeypatch.setattr(hub.time, "sleep", found.append)
    yield found
    server.shutdown()
    server.server_close()


def test_a_busy_hub_is_asked_again(waits):
    assert hub_revision("busy/model") == "abc123"
    assert waits and waits == [2.0, 4.0][: len(waits)]


@pytest.mark.parametrize("name, line, tries", [
    ("gone/model", "is not on the hub, or is private (404): check the name", 1),
    ("gated/model", "is gated: its owner lets in whom they know: ask for access on its page and give HF_TOKEN", 1),
    ("never/model", "cannot be had now: the hub answers 503: use a local one, paths.models=<folder>", 4),
])  # fmt: skip
def test_a_hub_that_says_no_is_one_line(waits, name, line, tries):
    with pytest.raises(ValueError) as error:
        hub_revision(name)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert Answers.asked.count(name.partition("/")[0]) == tries


def test_offline_nothing_is_asked(waits, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids to ask the hub: unset HF_HUB_OFFLINE"):
        hub_revision("gone/data", kind="dataset")
    assert not waits


def test_a_line_that_is_down_is_tried_again_and_told(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.time, "sleep", lambda _: None)
    tries = []

    def question():
        tries.append(1)
        raise ConnectionError("no route to host")

    with pytest.raises(ValueError, match=r"^the thing cannot be reached \(no route to host\): use a local one, here$"):
        hub.asked(question, what="the thing", remedy="here")
    assert len(tries) == hub.TRIES
