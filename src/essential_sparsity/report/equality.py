"""Whether two pruners do equally well at equal sparsity: two one-sided tests, level by level."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from essential_sparsity.analysis import SparsityCurve, equivalence
from essential_sparsity.analysis.metrics import spoken

CONFIDENCE = 0.95
VERDICTS = ("equal", "not shown", "different")


@dataclass(frozen=True)
class Equality:
    """The difference of two curves on the same rows and seeds, at every pruned level that both have."""

    label: str
    other: str
    split: str
    metric: str
    epsilon: float
    lines: tuple[dict[str, Any], ...]  # as `equivalence` gives them, without the dense level

    def turned(self) -> "Equality":
        """The same, seen from the other curve."""
        lines = [
            {**line, "difference": -line["difference"], "low": -line["high"], "high": -line["low"]}
            for line in self.lines
        ]
        return replace(self, label=self.other, other=self.label, lines=tuple(lines))

    def sentence(self) -> str:
        """Where the two are equal, where they differ, and where neither is shown."""
        unit, scale = ("nats", 1.0) if self.metric == "perplexity" else ("points", 100.0)
        bound = f"±{scale * self.epsilon:.2g} {unit if scale * self.epsilon != 1 else unit.removesuffix('s')}"
        parts = []
        for verdict in VERDICTS:
            found = [line for line in self.lines if line["verdict"] == verdict]
            apart = "" if verdict == "equal" else " ({:+.2g})"
            levels = [f"{line['sparsity']:g}{apart.format(scale * line['difference'])}" for line in found]
            words = {"equal": f"equal within {bound}", "not shown": "neither shown"}.get(verdict, verdict)
            parts += [f"{words} at sparsity {', '.join(levels)}"] if levels else []
        seeds = self.lines[0]["num_seeds"]
        return (
            f"{self.label} against {self.other} ({self.split} {spoken(self.metric)}, "
            f"{seeds} seed{'s' * (seeds != 1)}): {'; '.join(parts)}."
        )

    def record(self) -> dict[str, Any]:
        """This comparison's part of essential_sparsity.json."""
        return {"other": self.other, "sentence": self.sentence(), "levels": list(self.lines)}


def compare_curves(
    curve: SparsityCurve, other: SparsityCurve, *, epsilon: float | None, seed: int = 0
) -> Equality | None:
    """Test two curves for equality within ±ε; None where they share no pruned level, seed or row."""
    if curve.metric != other.metric or curve.row_ids.tolist() != other.row_ids.tolist():
        return None
    if not any(level for level, _ in curve.statistics.keys() & other.statistics.keys()):
        return None
    epsilon = curve.measure.epsilon if epsilon is None else epsilon
    lines = equivalence(curve, other, epsilon=epsilon, confidence=CONFIDENCE, seed=seed)
    pruned = tuple(line for line in lines if line["sparsity"] > 0)
    return Equality(curve.label, other.label, curve.split, curve.metric, epsilon, pruned) if pruned else None


def equality_table(found: Sequence[Equality]) -> pd.DataFrame:
    """The table of equivalence.csv: one line per pair of curves and pruned level, with ε, bounds and verdict."""
    lines = [
        {
            "curve": each.label,
            "other": each.other,
            "split": each.split,
            "metric": each.metric,
            "sparsity": line["sparsity"],
            "difference": line["difference"],
            "low": line["low"],
            "high": line["high"],
            "epsilon": each.epsilon,
            "confidence": CONFIDENCE,
            "num_seeds": line["num_seeds"],
            "verdict": line["verdict"],
        }
        for each in found
        for line in each.lines
    ]
    return pd.DataFrame(lines)
