"""One place for what a user types: runs a command in this process, in a folder of its own."""

import sys

import pytest

from essential_sparsity.apps.main import main


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Give a function that runs `essential-sparsity <words>` and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(words):
        arguments = words.split() if isinstance(words, str) else list(words)
        monkeypatch.setattr(sys, "argv", ["essential-sparsity", *arguments])
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
