"""One figure of a benchmark: what was measured, ours and a peer's, the goal, and the machine's own limit."""

import math
from dataclasses import asdict, dataclass
from typing import Any

WIDTHS = (72, 10, 10, 14, 8, 7)
HEAD = ("what", "ours", "peer", "ratio", "goal", "met", "machine's limit")


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    `ours`, `peer` and `limit` share one `unit` (limit: `limit_unit` where that differs). The ratio is peer / ours
    ("faster"), or ours / peer ("of peer"). `goal` ("≥ 50", "≤ 0.05", "= 20") is about the ratio; without a peer, and
    for shares, it is about ours. A `check` must hold; any other goal is only shown.
    """

    what: str
    ours: float | None = None
    peer: float | None = None
    unit: str = "s"
    ratio_is: str = "faster"
    paired_ratio: float | None = None  # median over rounds, in place of the ratio of medians
    goal: str = ""
    check: bool = False
    limit: float | None = None
    limit_is: str = ""
    limit_unit: str = ""
    note: str = ""
    skipped: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer, or which share of the peer's time."""
        if self.paired_ratio is not None:
            return self.paired_ratio
        if self.ours is None or self.peer is None or not self.ours or not self.peer:
            return None
        return self.peer / self.ours if self.ratio_is == "faster" else self.ours / self.peer

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal or a number."""
        value = self.ours if self.ratio is None or self.unit == "share" else self.ratio
        if not self.goal or value is None:
            return None
        sign, bound = self.goal.split()
        return {"≥": value >= float(bound), "≤": value <= float(bound), "=": value == float(bound)}[sign]

    def cells(self) -> tuple[str, ...]:
        """Give the row's cells as text, in the order of `HEAD`."""
        if self.skipped:
            return (self.what, "—", "—", "—", self.goal, "—", self.skipped)
        times = "×" if self.ratio_is == "faster" else " of peer"
        ratio = "" if self.ratio is None else f"{significant(self.ratio)}{times}"
        verdict = {None: "", True: "yes", False: "NO"}[self.met]
        goal = self.goal
        if goal and self.unit == "share":
            sign, bound = goal.split()
            goal = f"{sign} {shown(float(bound), 'share')}"
        limit = "" if self.limit is None else shown(self.limit, self.limit_unit or self.unit)
        limit = " ".join(part for part in (limit, self.limit_is) if part)
        return (self.what, shown(self.ours, self.unit), shown(self.peer, self.unit), ratio, goal, verdict, limit)

    def row(self) -> str:
        """Give the row as one line for the terminal."""
        return aligned(self.cells())

    def as_dict(self) -> dict[str, Any]:
        """Give what the JSON file holds."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Figure":
        """Read a figure of a JSON file."""
        return cls(**{key: value for key, value in content.items() if key not in ("ratio", "met")})


def aligned(cells: tuple[str, ...]) -> str:
    """Pad all cells but the last; the first is flush left, numbers are flush right."""
    first, *numbers, last = cells
    padded = [f"{text:>{width}}" for text, width in zip(numbers, WIDTHS[1:], strict=True)]
    return "  ".join([f"{first:<{WIDTHS[0]}}", *padded, last]).rstrip()


def shown(value: float | None, unit: str) -> str:
    """Show a value in its unit: seconds below 0.1 as milliseconds, shares in percent."""
    if value is None:
        return ""
    if unit == "s":
        return f"{significant(1000 * value)} ms" if value < 0.1 else f"{significant(value)} s"
    if unit == "share":
        return f"{significant(100 * value)} %"
    return f"{significant(value)} {unit}".rstrip()


def significant(value: float) -> str:
    """Show three significant digits, whole numbers whole, without an exponent where it is readable."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if not math.isfinite(value) or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
