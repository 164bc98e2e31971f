"""Signals ahead of an end: their answer waits for a checkpoint, comes once, and never from a forked process."""

import os
import signal
import time

import pytest

from essential_sparsity import preemption
from essential_sparsity.apps.guard import Outcome, guarded
from essential_sparsity.preemption import Requeued, heeded, saving, training


@pytest.fixture
def answers():
    """Stand in for submitit: its handler of SIGUSR2 requeues and leaves, that of SIGTERM goes on; both are noted."""
    noted = []

    def leave(number, frame):
        noted.append("requeued")
        raise SystemExit(-1)

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, leave)
    signal.signal(signal.SIGTERM, lambda number, frame: noted.append("stays"))
    yield noted
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number=signal.SIGUSR2):
    os.kill(os.getpid(), number)


def test_the_answer_waits_for_the_checkpoint(answers):
    with heeded(), training():
        assert not preemption.checkpoint_asked()
        send()
        assert preemption.checkpoint_asked() and not answers
        with pytest.raises(Requeued), saving():
            assert not answers, "amid the checkpoint"
    assert answers == ["requeued"]


def test_where_nothing_is_trained_the_answer_comes_at_once(answers):
    with heeded(), pytest.raises(Requeued):
        send()
    assert answers == ["requeued"]


def test_a_signal_amid_a_checkpoint_is_answered_after_it(answers):
    with heeded(), training(), pytest.raises(Requeued), saving():
        send()
        assert not answers
    assert answers == ["requeued"]


def test_signals_that_follow_are_the_same_one(answers):
    with heeded(), training():
        send()
        send()
        with pytest.raises(Requeued), saving():
            send()
        send()
    assert answers == ["requeued"]


def test_without_a_checkpoint_the_answer_comes_after_the_grace(answers, monkeypatch):
    monkeypatch.setattr(preemption, "GRACE", 0.2)
    began = time.monotonic()
    with heeded(), training(), pytest.raises(Requeued):
        send()
        time.sleep(30)
    assert 0.2 <= time.monotonic() - began < 10


def test_a_run_that_ends_within_the_grace_ends_well(answers, monkeypatch):
    monkeypatch.setattr(preemption, "GRACE", 0.2)
    with heeded(), training():
        send()
    time.sleep(0.4)
    assert answers == []


def test_sigterm_asks_for_a_checkpoint_and_the_job_stays(answers):
    with heeded(), training():
        send(signal.SIGTERM)
        assert preemption.checkpoint_asked() and answers == ["stays"]
        with saving():
            pass
        assert not preemption.checkpoint_asked()


@pytest.mark.parametrize("number, ended", [(signal.SIGUSR2, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_forked_process_answers_nothing_and_can_be_ended(answers, number, ended):
    with heeded(), training():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(len(answers))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ended


def test_afterwards_the_handlers_are_those_before(answers):
    before = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM)
    with heeded():
        assert signal.getsignal(signal.SIGUSR2) != before[0]
    assert (signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM)) == before


def test_where_nobody_handles_the_signal_nothing_changes():
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    with heeded(), training(), saving():
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        assert not preemption.checkpoint_asked()


def test_a_point_that_leaves_for_the_queue_has_not_failed():
    def work() -> Outcome:
        raise Requeued(-1)

    with pytest.raises(Requeued):
        guarded(work, overrides=[], run=None, record=None, always=True)
