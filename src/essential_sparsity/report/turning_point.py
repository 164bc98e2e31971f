"""The search for the turn on its page: what was found, and which levels it visited."""

import json
from html import escape
from pathlib import Path

from essential_sparsity.analysis.metrics import spoken
from essential_sparsity.report.tables import saved_table

METHOD = (
    "hydra/sweeper=turning_point visits levels by bisection until the turn lies between two of them that differ by "
    "no more than twice the tolerance, or the budget is spent. Free: the mean difference to dense lies above −ε "
    "beyond doubt; costly: below; open: neither. The bounds are those of the mean over seeds on these rows."
)


def turning_section(out: Path) -> str:
    """Give the section from `out/turning_point.json`, one part per search; empty where there was none."""
    path = out / "turning_point.json"
    entries = json.loads(path.read_text()) if path.is_file() else []
    parts = []
    for index, entry in enumerate(entries):
        header = ["sparsity", "verdict", "seeds", spoken(entry["metric"]), "difference", "bounds"]
        lines = [
            [f"{line['sparsity']:g}", line["verdict"], str(line["num_seeds"]), f"{line['value']:.4f}",
             f"{line['difference']:+.4f}", f"{line['low']:+.4f} … {line['high']:+.4f}"]
            for line in entry["levels"]
        ]  # fmt: skip
        if entry["confidence"] is None:  # nothing differs between runs of a level
            header, lines = header[:-1], [line[:-1] for line in lines]
        head = f"<h3>{escape(entry['label'])}</h3>" if entry["label"] else ""
        spent = f"{entry['num_runs']} of at most {entry['budget']} runs" + (
            f", {entry['num_failed']} failed" if entry["num_failed"] else ""
        )
        table = saved_table(out, f"turning-point-{index:02d}", header, lines, caption="Visited levels")
        parts.append(
            f"{head}<p class=lead>{escape(entry['statement'])}</p><p class=sub>{escape(spent)}, tolerance "
            f"{entry['tolerance']:g}</p>{table}"
        )
    if not parts:
        return ""
    head = "<section id=turning-point><h2>The search for the turn</h2>"
    return f"{head}{''.join(parts)}<p class=note>{METHOD}</p></section>"
