"""A machine that is about to be taken away: the scheduler's signal waits for a checkpoint, and is answered once.

Ahead of a time limit or a pre-emption a scheduler sends SIGUSR2. The launcher that submitted the job (submitit) answers
by putting it back into the queue and leaving, at once, wherever the process is: amid a step there is nothing whole to
save. `heeded` lets that answer wait until the training has saved what the job goes on from, for a grace of seconds at
most. SIGTERM, which a scheduler sends ahead of a kill, asks for the checkpoint alone.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

GRACE = 10.0
"""Seconds that the answer waits for the next checkpoint; then the job goes on from the one before."""

Answer = Callable[[int, FrameType | None], Any]


class Requeued(SystemExit):
    """The job is back in the queue: nothing failed, and nothing is left to do in this process."""


class Notice:
    """What one process knows of its end: whether a checkpoint is asked for, and who answers the signal after it."""

    def __init__(self, answer: Answer, grace: float) -> None:
        self.answer, self.grace, self.owner = answer, grace, os.getpid()
        self.asked = self.leaving = self.is_late = self.answered = False
        self.is_training = self.is_saving = False
        self.timer: threading.Timer | None = None

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """Note the signal; answer it at once where nothing is being trained, else after the next checkpoint."""
        if os.getpid() != self.owner or self.answered:  # schedulers signal all processes, those of a data loader too
            return
        if self.leaving and not self.is_late:
            return
        self.asked = self.leaving = True
        if self.is_saving:
            return
        if self.is_late or not self.is_training:
            self.leave()
        self.timer = threading.Timer(self.grace, self._ring, (number,))
        self.timer.daemon = True
        self.timer.start()

    def _ring(self, number: int) -> None:
        """Interrupt the main thread, whatever it waits for: the grace is over."""
        self.is_late = True
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    def leave(self) -> None:
        """Give the signal to who answers it. Raises Requeued where that ends the process."""
        self.stop_timer()
        self.answered = True
        try:
            self.answer(signal.SIGUSR2, None)
        except SystemExit as error:
            raise Requeued(error.code) from None

    def stop_timer(self) -> None:
        """Ring no more."""
        if self.timer is not None:
            self.timer.cancel()


_notice: Notice | None = None


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Let whoever handles SIGUSR2 wait for checkpoints inside this block; without such a handler nothing changes."""
    global _notice
    answer = signal.getsignal(signal.SIGUSR2)
    if not callable(answer) or threading.current_thread() is not threading.main_thread():
        yield
        return
    notice, before = Notice(answer, GRACE), signal.getsignal(signal.SIGTERM)

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != notice.owner:  # a process of a data loader, which is ended in this way
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        notice.asked = True
        if callable(before):
            before(number, frame)

    if callable(before):  # the launcher stays where it is until the kill
        signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGUSR2, notice.hear)
    _notice = notice
    try:
        yield
    finally:
        _notice = None
        notice.stop_timer()
        signal.signal(signal.SIGUSR2, answer)
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Say that checkpoints can be expected inside this block."""
    notice = _notice
    if notice is None:
        yield
        return
    notice.is_training = True
    try:
        yield
    finally:
        notice.is_training = False


def checkpoint_asked() -> bool:
    """Say whether a signal asks for a checkpoint at the next safe point."""
    return _notice is not None and _notice.asked


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Hold the signal back while a checkpoint is written, then answer it. Raises Requeued where that ends the job."""
    notice = _notice
    if notice is None:
        yield
        return
    notice.stop_timer()
    notice.is_saving = True
    try:
        yield
    finally:
        notice.is_saving = False
    notice.asked = False
    if notice.leaving:
        notice.leave()
