"""Two pruners side by side in a report: equal, different or not shown, in the CSV, on the page and on the terminal."""

import json
from pathlib import Path

import pandas as pd
import pytest
from tests.analysis.synthetic_sweep import falls_early, falls_late, write_sweep

from essential_sparsity.report import write_report
from essential_sparsity.report.equality import Equality
from essential_sparsity.report.tables import terminal_table

LINE = {"low": -0.004, "high": 0.006, "equivalent": True, "num_seeds": 3}
FOUND = Equality(
    "lottery", "omp", "validation", "accuracy", 0.01,
    ({**LINE, "sparsity": 0.1, "difference": 0.001, "verdict": "equal"},
     {**LINE, "sparsity": 0.3, "difference": 0.002, "verdict": "equal"},
     {**LINE, "sparsity": 0.4, "difference": 0.004, "verdict": "not shown"},
     {**LINE, "sparsity": 0.5, "difference": 0.023, "verdict": "different"}),
)  # fmt: skip


def late_tickets(sparsity: float) -> float:
    """As one-shot masks below a half, 6 points better at 0.6."""
    return falls_late(sparsity) + (0.06 if sparsity > 0.5 else 0)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One-shot masks, tickets and random masks: equal below a half, then not."""
    monkeypatch.setattr("essential_sparsity.report.write_figures", lambda *_: [])
    folder = tmp_path / "tickets"
    write_sweep(folder, levels=(0.0, 0.2, 0.4, 0.6))
    write_sweep(folder, levels=(0.2, 0.6), pruner="lottery", truth=late_tickets)
    write_sweep(folder, levels=(0.2, 0.6), pruner="random", truth=falls_early)
    write_report(folder)
    return folder / "report"


def test_the_sentence_names_levels_by_verdict() -> None:
    assert FOUND.sentence() == (
        "lottery against omp (validation accuracy, 3 seeds): equal within ±1 point at sparsity 0.1, 0.3; "
        "neither shown at sparsity 0.4 (+0.4); different at sparsity 0.5 (+2.3)."
    )


def test_seen_from_the_other_side_signs_and_bounds_turn() -> None:
    turned = FOUND.turned()
    assert (turned.label, turned.other) == ("omp", "lottery")
    assert next((line["difference"], line["low"], line["high"]) for line in turned.lines) == (-0.001, -0.006, 0.004)
    assert turned.turned() == FOUND


def test_the_csv_has_a_line_per_pair_of_pruners_and_pruned_level(sweep: Path) -> None:
    table = pd.read_csv(sweep / "equivalence.csv")
    assert set(zip(table["curve"], table["other"])) == {("lottery", "omp")}
    assert dict(zip(table["sparsity"], table["verdict"])) == {0.2: "equal", 0.6: "different"}
    assert table["difference"].tolist() == pytest.approx([0.0, 0.06], abs=0.005)
    assert set(table["num_seeds"]) == {3} and set(table["epsilon"]) == {0.01}


def test_every_curve_tells_of_the_others_and_controls_do_not(sweep: Path) -> None:
    entries = {entry["pruner"]: entry for entry in json.loads((sweep / "essential_sparsity.json").read_text())}
    assert [each["other"] for each in entries["omp"]["equality"]] == ["lottery"]
    assert [each["other"] for each in entries["lottery"]["equality"]] == ["omp"]
    mine, yours = (entries[name]["equality"][0]["levels"][1]["difference"] for name in ("omp", "lottery"))
    assert mine == -yours


def test_the_page_and_the_terminal_say_so(sweep: Path) -> None:
    text = (sweep / "index.html").read_text()
    assert text.count("Equal to the other pruners?") == 2
    assert "equal within ±0.01" in text and "Two pruners are called equal" in text
    first_screen = text[: text.index("Validity")]
    assert "Equal to the other pruners?" not in first_screen
    shown = " ".join(terminal_table(json.loads((sweep / "essential_sparsity.json").read_text())).split())
    assert shown.count("equal within ±1 point at sparsity 0.2; different at sparsity 0.6") == 1


def test_one_pruner_alone_has_no_table_of_equality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("essential_sparsity.report.write_figures", lambda *_: [])
    write_sweep(tmp_path, levels=(0.0, 0.5))
    write_sweep(tmp_path, levels=(0.0, 0.5), pruner="lottery", seeds=(7, 8))  # no seed in common
    (first, second) = write_report(tmp_path)
    assert first["equality"] == second["equality"] == []
    assert not (tmp_path / "report" / "equivalence.csv").exists()
