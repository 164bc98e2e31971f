"""The notebooks run, are stored without outputs, and read as a course."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

BEGIN_ANEW = "%reset -f\nimport os\nos.chdir({folder!r})\ndel os"
"""What stands before a notebook's first cell: no name of the one before it, and a folder of its own."""


@pytest.fixture(scope="module")
def kernel():
    """Start one kernel for all notebooks: it imports torch and transformers once, which takes longer than most."""
    manager = KernelManager(kernel_name="python3")
    environment = os.environ | {"ES_NOTEBOOK_SCALE": "tiny", "PYTHONPATH": str(ROOT / "src")}
    manager.start_kernel(env=environment, extra_arguments=["--HistoryManager.hist_file=:memory:"])
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's own
@EACH
def test_a_notebook_runs(path, kernel, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEGIN_ANEW.format(folder=str(tmp_path))))
    client = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in str(output)]
    assert pictures or "figure" not in path.read_text()


@EACH
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), f"{path.name} has outputs: clear them"
    assert notebook.metadata.kernelspec.name == "python3"


@EACH
def test_a_notebook_opens_with_its_question_and_ends_with_two_exercises(path):
    first, *_, last = nbformat.read(path, as_version=4).cells
    assert first.cell_type == last.cell_type == "markdown"
    assert re.match(r"# \S.*[?a-z]\n\n", first.source), "a title, then the question"
    assert re.findall(r"^(\d)\. ", last.source.partition("## Exercises\n")[2], flags=re.M) == ["1", "2"]


@EACH
def test_the_experiments_that_a_notebook_names_are_there(path):
    text = path.read_text()
    there = {file.stem for file in (ROOT / "conf/experiment").glob("*.yaml")}
    written = set(re.findall(r"%%writefile conf/experiment/(\w+)\.yaml", text))
    assert set(re.findall(r"experiment=(\w+)", text)) <= there | written


def test_readme_names_every_notebook():
    assert {path.name for path in NOTEBOOKS} == set(
        re.findall(r"notebooks/(\w+\.ipynb)", (ROOT / "README.md").read_text())
    )
