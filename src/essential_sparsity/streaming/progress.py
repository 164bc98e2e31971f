"""How far a pass over a checkpoint is, and how many bytes per second each pass made."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

INTERVAL = 0.5
"""Seconds between two lines about one pass."""


@dataclass
class Pass:
    """One pass over the files: its name, the bytes it is to go through, those done, and the seconds it took."""

    name: str
    num_bytes: int
    done: int = 0
    seconds: float = 0.0
    finished: bool = False

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.done / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Give name, bytes and seconds, for JSON."""
        return {"name": self.name, "bytes": self.done, "seconds": self.seconds}


Tell = Callable[[Pass], None]
"""Is told now and then how far a pass is, and once that it is finished."""


@dataclass
class Progress:
    """Counts the bytes of one pass after another, from any thread."""

    tell: Tell = lambda current: None
    passes: list[Pass] = field(default_factory=list)
    _started: float = 0.0
    _told: float = 0.0
    _lock: Any = field(default_factory=Lock)

    def begin(self, name: str, num_bytes: int) -> None:
        """End the pass before, if any, and begin this one."""
        self.end()
        self.passes.append(Pass(name, num_bytes))
        self._started = self._told = time.monotonic()

    def add(self, num_bytes: int) -> None:
        """Count bytes of the pass that is under way."""
        with self._lock:
            current, now = self.passes[-1], time.monotonic()
            current.done += num_bytes
            current.seconds = now - self._started
            if now - self._told >= INTERVAL:
                self._told = now
                self.tell(current)

    def end(self) -> None:
        """End the pass that is under way."""
        if self.passes and not self.passes[-1].finished:
            current = self.passes[-1]
            current.seconds, current.finished = time.monotonic() - self._started, True
            self.tell(current)
