"""The benchmarks run: small sizes of the cheap ones. What they measure is no matter here, what they check is."""

import json
from dataclasses import replace

import pytest

from tests.bench import calibrated, callback, machine, page, prune_large, pruning, startup
from tests.bench.__main__ import BENCHMARKS, main
from tests.bench.figure import HEAD, Figure, significant


@pytest.mark.parametrize("story", [machine, callback, startup], ids=lambda story: story.__name__)
def test_a_quick_run_gives_numbers_and_a_limit(story):
    figures = list(story.run(quick=True))
    assert figures
    assert all(figure.limit is not None and figure.limit > 0 for figure in figures)


def test_every_exactness_check_holds_for_every_form():
    for form in pruning.FORMS:
        checks = list(pruning.exactness(form, pruning.random_weights(form, quick=True)))
        assert [figure.what for figure in checks if not (figure.check and figure.met)] == []


def test_an_exactness_check_fails_for_wrong_masks():
    weights = pruning.random_weights("fp32", quick=True)
    right, wrong = pruning.ours(weights), pruning.ours({name: -1 / w for name, w in weights.items()})
    assert pruning._differing(weights, right, pruning.torch_global(weights)) == (0, 0)
    assert pruning._differing(weights, wrong, pruning.torch_global(weights))[1] > 0
    assert pruning._out_of_order(weights, right) == 0 < pruning._out_of_order(weights, wrong)


def test_peak_memory_is_measured_in_a_fresh_process():
    measured, seconds = pruning.fresh(pruning.extra_memory, form="fp32", who="ours", quick=True)
    assert measured["weights"] == 4 * 98_304
    assert measured["masks"] == 98_304 / 8
    assert measured["extra"] < 64 * 2**20
    assert seconds > 0


def test_a_pass_is_judged_by_the_slower_of_disk_and_memory():
    memory = machine.Rates(10e9, 8e9, 1.0, 1.0)
    assert prune_large.limit_of("count", 2e9, 1e9, memory) == (2e9, "the disk's read")
    assert prune_large.limit_of("count", 20e9, 1e9, memory) == (10e9, "memory's read")
    assert prune_large.limit_of("write", 20e9, 1e9, memory) == (1e9, "the disk's copy")
    assert prune_large.limit_of("write", 20e9, 9e9, memory) == (4e9, "memory's copy")


def test_calibrated_pruners_tell_both_ratios_and_which_the_goal_is_about():
    goal, beside = calibrated.against_both("Wanda", 2.0, 12.0, 5.0, limit={})
    assert (goal.peer, goal.goal, goal.met) == (12.0, "≥ 4", True) and (beside.peer, beside.goal) == (5.0, "")
    assert "6× the straightforward way, per sample and per matrix, against which the goal stands" in goal.note
    assert "2.50× the published way" in goal.note


@pytest.mark.parametrize(("ours", "peer", "ratio_is", "unit", "goal", "met"), [
    (1.0, 60.0, "faster", "s", "≥ 50", True),
    (1.0, 40.0, "faster", "s", "≥ 50", False),
    (1.02, 1.0, "of peer", "s", "≤ 1.03", True),
    (0.04, 12.0, "of peer", "share", "≤ 0.05", True),
    (0.06, 12.0, "of peer", "share", "≤ 0.05", False),
    (20, None, "faster", "", "= 20", True),
    (0.3, None, "faster", "s", "≤ 0.4", True),
    (0.3, None, "faster", "s", "", None),
])  # fmt: skip
def test_goals_are_about_the_ratio_or_about_ours(ours, peer, ratio_is, unit, goal, met):
    assert Figure("x", ours, peer, unit=unit, ratio_is=ratio_is, goal=goal).met is met


@pytest.mark.parametrize(("value", "text"), [
    (20, "20"), (84_934_656, "84,934,656"), (93.26, "93.3"), (1234.5, "1,234"), (0.01234, "0.0123"),
    (1.2e-7, "1.2e-07"),
])  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert significant(value) == text


def test_the_page_is_rewritten_from_the_files_and_keeps_its_text(tmp_path, capsys):
    assert main(["machine", "--quick", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in HEAD)
    (tmp_path / "quick" / "machine.json").rename(tmp_path / "machine.json")
    content = json.loads((tmp_path / "machine.json").read_text())
    assert content["command"] == "python -m tests.bench machine --quick"
    readme = tmp_path / "README.md"
    kept = "### nm\n\nmeasured on another day"
    readme.write_text(f"before\n{page.BEGIN}\nold\n### machine\nold\n\n{kept}\n{page.END}\nafter\n")
    for _ in range(2):  # twice: it must find its markers again
        assert page.rewrite(tmp_path, list(BENCHMARKS), readme) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.index("### machine") < text.index(kept) and text.count("### ") == 2
    assert "### machine" in text and "GB/s" in text and content["versions"]["torch"] in text


def test_figures_survive_their_file():
    figure = replace(Figure("x", 1.0, 2.0, goal="≥ 50", note="n"), skipped="")
    assert Figure.from_dict(json.loads(json.dumps(figure.as_dict()))) == figure


def test_the_page_names_every_benchmark():
    assert all(f"`{name}`" in page.PAGE.read_text() for name in BENCHMARKS)
    assert page.BEGIN in page.PAGE.read_text() and page.END in page.PAGE.read_text()


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["prunning"])
    assert "prunning is no benchmark" in capsys.readouterr().err


def test_a_page_without_figures_says_what_to_run(tmp_path, capsys):
    assert page.rewrite(tmp_path, list(BENCHMARKS)) == 2
    assert "run python -m tests.bench first" in capsys.readouterr().err
