"""Every run of a sweep as a line of its page, made by the page's script when it is opened: 5,000 are no load."""

from collections.abc import Sequence
from html import escape
from typing import Any

from essential_sparsity.analysis.curves import level_of
from essential_sparsity.analysis.grouping import pruner_name
from essential_sparsity.runs import RunRecord

FACETS = ("model", "task", "pruner")
COLUMNS = ("run", "state", *FACETS, "sparsity", "seed", "value", "minutes", "command")


def runs_content(records: Sequence[RunRecord]) -> dict[str, Any]:
    """What the script makes the table of, and the command of each run for whoever points at its dot."""
    return {
        "columns": COLUMNS,
        "facets": FACETS,
        "rows": [_row(record) for record in records],
        "commands": {escape(record.path.name): record.info.get("command") for record in records},
    }


def _row(record: RunRecord) -> list[str | None]:
    metrics, choices, data = record.metrics or {}, record.info.get("choices") or {}, record.config.get("data")
    subset = data.get("subset") if isinstance(data, dict) else None  # of runs from Python it is a text
    state = "finished" if record.finished else "failed" if record.failure else "not finished"
    level, value, seconds = level_of(record), metrics.get("value"), metrics.get("seconds")
    task = " ".join(str(part) for part in (choices.get("data"), subset) if part)
    return [
        record.path.name, state, choices.get("backbone"), task or None, pruner_name(record),
        None if level is None else f"{level:g}", str(record.config.get("seed")),
        None if value is None else f"{value:.4f}", None if seconds is None else f"{seconds / 60:.2f}",
        record.info.get("command"),
    ]  # fmt: skip


def all_runs_section(records: Sequence[RunRecord]) -> str:
    """The place of the table."""
    return (
        f"<section><h2>All runs</h2><details id=runs><summary>{len(records):,} runs, one line each</summary>"
        '<div class=scroll id=runs-table tabindex=0 role=region aria-label="All runs"></div></details></section>'
    )
