"""What else changes where accuracy is still free: other splits, calibration error, rows whose prediction flips."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from essential_sparsity.report.panels import Panel, is_control, percent, points, shown_level
from essential_sparsity.report.tables import saved_table
from essential_sparsity.runs import atomic_path

METHOD = (
    "At the last level within ε of dense on the first split, every split shows its loss with a 95 % interval, its "
    "expected calibration error (15 bins, mean over seeds) before and after, and the share of rows whose prediction "
    "flips, beside what another seed alone flips in dense runs. Accuracy that is free can hide all three."
)


def robustness_lines(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """One line per curve and split, at the level that the curve's first split says is the last free one."""
    chosen = {}
    for panel in panels:
        if panel.curve.is_primary:
            chosen[_key(panel)] = shown_level(panel.result)
    lines = []
    for panel in panels:
        level = chosen.get(_key(panel))
        by_level = {line["sparsity"]: line for line in panel.result.levels}
        if is_control(panel.curve) or level is None or level not in by_level:
            continue
        dense, at = by_level[0.0], by_level[level]
        lines.append({
            "curve": panel.title, "split": panel.result.split, "sparsity": level, "metric": panel.result.metric,
            "difference": at["difference"], "low": at["low"], "high": at["high"],
            "calibration_error_dense": dense["calibration_error"], "calibration_error": at["calibration_error"],
            "flipped": at["flipped"], "flipped_by_seed": panel.result.dense_flipped,
            "loss": points(panel.result, -at["difference"]),
        })  # fmt: skip
    return lines


def _key(panel: Panel) -> str:
    return str(sorted((key, str(value)) for key, value in panel.curve.group.items() if key != "split"))


def robustness_section(panels: Sequence[Panel], out: Path) -> str:
    """Write `out/robustness.csv`; give the section, empty where no curve has a level to look at."""
    lines = robustness_lines(panels)
    if not lines:
        return ""
    with atomic_path(out / "robustness.csv") as temporary:
        pd.DataFrame(lines).drop(columns="loss").to_csv(temporary, index=False)
    rows = [
        [line["curve"], line["split"], f"{line['sparsity']:g}", line["loss"],
         f"{line['low']:+.4f} … {line['high']:+.4f}", _error(line["calibration_error_dense"]),
         _error(line["calibration_error"]), percent(line["flipped"]), percent(line["flipped_by_seed"])]
        for line in lines
    ]  # fmt: skip
    header = ["curve", "split", "sparsity", "lost", "interval of the difference", "calibration error, dense", "pruned",
              "rows that flip", "by another seed alone"]  # fmt: skip
    return (
        f"<section><h2>At the essential sparsity</h2>"
        f"{saved_table(out, 'robustness', header, rows, caption='At the essential sparsity')}"
        f"<p class=note>{escape(METHOD)}</p></section>"
    )


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
