"""Ctrl-C is heeded wherever it comes."""

import signal
import sys
import time

import pytest

from essential_sparsity.apps.interrupts import heeded


class Closing:
    """An object whose end takes a moment, in which Ctrl-C comes."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


@pytest.fixture
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_of_an_object_s_end_comes_again(interruptible, capsys):
    with pytest.raises(KeyboardInterrupt), heeded():
        Closing(KeyboardInterrupt)
        time.sleep(10)
    assert "Traceback" not in capsys.readouterr().err


def test_what_else_goes_wrong_there_is_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    with heeded():
        Closing(ValueError)
    assert told == [ValueError]
    hook = sys.unraisablehook
    with heeded():
        pass
    assert sys.unraisablehook is hook
