"""essential-sparsity report: one experiment or all of them, and the index beside them."""

import pytest
from tests.analysis.synthetic_sweep import open_run, write_sweep


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Leave static figures out: they take most of a report's time."""
    monkeypatch.setattr("essential_sparsity.report.write_figures", lambda *_: [])


def test_a_report_rewrites_the_index(command, tmp_path):
    write_sweep(tmp_path / "outputs/one", levels=(0.0, 0.5), seeds=(0,), num_rows=200)
    code, out, err = command("report name=one")
    assert code == 0, err
    assert "report: outputs/one/report/index.html, beside others in outputs/index.html" in out
    assert 'href="one/report/index.html"' in (tmp_path / "outputs/index.html").read_text()
    assert 'href="../../index.html"' in (tmp_path / "outputs/one/report/index.html").read_text()


def test_all_rebuilds_everything_and_one_broken_folder_takes_no_other_down(command, tmp_path):
    for name in ("one", "two"):
        write_sweep(tmp_path / "outputs" / name, levels=(0.0, 0.5), seeds=(0,), num_rows=200)
    broken = open_run(tmp_path / "outputs/broken", sparsity=0.5, seed=0)
    (broken.path / "run.json").write_text("{")
    code, out, err = command("report all=true")
    assert code == 2 and "one:" in out and "two:" in out
    assert "1 of 3 folders could not be reported: broken (" in err and "is no whole JSON file" in err
    page = (tmp_path / "outputs/index.html").read_text()
    assert all(f'href="{name}/report/index.html"' in page for name in ("one", "two"))


def test_all_without_runs_says_what_to_do(command, tmp_path):
    (tmp_path / "outputs/empty").mkdir(parents=True)
    code, _, err = command("report all=true")
    assert code == 2 and "no folder of outputs holds runs: run an experiment first" in err
