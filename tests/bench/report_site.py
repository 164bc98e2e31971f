"""Pages of many runs: how long they take to build, how large they are, how fast Chromium opens them; the index.

python -m tests.bench.report_site    # alone, as `python -m tests.bench report_site` runs it
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from essential_sparsity.report import write_index, write_report
from essential_sparsity.runs import read_json, write_json
from tests.analysis.synthetic_sweep import write_sweep
from tests.bench.figure import Figure
from tests.report.browser import CHROMIUM, chromium

Size = tuple[int, int, int, int]  # tasks, levels, seeds, rows

ISSUE: Size = (3, 10, 3, 872)
MANY: Size = (20, 25, 10, 200)
SMALL: Size = (2, 3, 2, 100)

ROUNDS = 5
"""Times that a page is opened."""


def run(quick: bool) -> Iterator[Figure]:
    """Give build times, bytes and load times of a page of 90 and of 5,000 runs, and the time of an index."""
    sizes = [SMALL] if quick else [ISSUE, MANY]
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            yield from page_figures(Path(folder) / "outputs", size)
        yield index_figure(Path(folder), num_experiments=2 if quick else 12)


def write_runs(folder: Path, size: Size) -> int:
    """Write tasks × levels × seeds through the public run writer; give their number."""
    tasks, levels, seeds, rows = size
    grid = [round(level / levels, 4) for level in range(levels)]
    for task in range(tasks):
        write_sweep(folder, levels=grid, seeds=range(seeds), num_rows=rows, data__subset=f"task_{task:02d}")
    return tasks * levels * seeds


def page_figures(outputs: Path, size: Size) -> Iterator[Figure]:
    """Give the figures of one page."""
    folder = outputs / "x".join(map(str, size[:3]))
    num = write_runs(folder, size)
    what = f"a page of {num:,} runs"
    started = time.perf_counter()
    write_report(folder)
    taken = time.perf_counter() - started
    yield Figure(f"{what}: build, static figures and tables included", taken)
    page = folder / "report" / "index.html"
    yield Figure(f"{what}: size", page.stat().st_size / 1e6, unit="MB", goal="≤ 6")
    if CHROMIUM is None:
        yield Figure(f"{what}: opens", skipped="chromium is not installed")
        return
    load, drawn = opening(page)
    yield Figure(f"{what}: load event in Chromium", load, goal="≤ 1")
    yield Figure(f"{what}: first figure drawn", drawn, goal="≤ 1")


def opening(page: Path) -> tuple[float, float]:
    """Median seconds from the start of the navigation to the load event, and to the first interactive figure."""
    loads, charts = [], []
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        for _ in range(ROUNDS):
            opened = browser.open(page.as_uri())
            opened.wait("document.documentElement.dataset.firstChart", seconds=60)
            loads.append(opened.run("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
            charts.append(opened.run("Number(document.documentElement.dataset.firstChart)") / 1000)
            assert not opened.errors, opened.errors
    return median(loads), median(charts)


def index_figure(folder: Path, *, num_experiments: int) -> Figure:
    """Give the seconds of an index per 1,000 runs: copies of one report of 90 runs."""
    outputs = folder / "site"
    num = write_runs(outputs / "experiment_00", ISSUE if num_experiments > 2 else SMALL)
    report = outputs / "experiment_00" / "report"
    if not (report / "summary.json").is_file():
        write_report(outputs / "experiment_00")
    for index in range(1, num_experiments):
        copy = outputs / f"experiment_{index:02d}" / "report"
        copy.mkdir(parents=True)
        shutil.copy(report / "index.html", copy)
        write_json(copy / "summary.json", {**read_json(report / "summary.json"), "title": copy.parent.name})
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        write_index(outputs)
        seconds.append(time.perf_counter() - started)
    return Figure("the index, per 1,000 runs", median(seconds) * 1000 / (num * num_experiments), goal="≤ 5")


if __name__ == "__main__":
    for figure in run(quick="--quick" in sys.argv):
        print(figure.row(), flush=True)
