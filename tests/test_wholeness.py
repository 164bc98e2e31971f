"""A file that was cut short is seen, whatever its format; a run with one begins anew, saying so."""

import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from essential_sparsity.runs import Run, write_json
from essential_sparsity.wholeness import is_whole


def files(folder):
    """Write one file of each format."""
    folder.mkdir(exist_ok=True)
    save_file({"a": np.arange(6.0), "b": np.ones((2, 3))}, folder / "a.safetensors", {"x": "y"})
    pq.write_table(pa.table({"x": list(range(50))}), folder / "a.parquet")
    write_json(folder / "a.json", {"x": [1, 2, {"y": None}]})
    (folder / "a.csv").write_text("x,y\n1,2\n3,4\n")
    with zipfile.ZipFile(folder / "a.ckpt", "w") as archive:
        archive.writestr("data", "x" * 100)
    return sorted(folder.iterdir())


def test_every_cut_of_every_format_is_seen(tmp_path):
    for path in files(tmp_path):
        whole = path.read_bytes()
        assert is_whole(path)
        for length in range(0, len(whole) - 1, 7):
            path.write_bytes(whole[:length])
            ended = path.suffix == ".csv" and whole[:length].endswith(b"\n")  # the one cut that a table does not show
            assert is_whole(path) == ended, (path.name, length)


def test_a_finished_run_with_a_file_cut_short_is_unfinished_again(tmp_path):
    run = Run(tmp_path / "run")
    with run.lock():
        run.start({"config": {"seed": 0}})
        files(run.path / "checkpoints")
        files(run.path / "model")
        run.finish({"value": 1.0}, keep_checkpoints=True)
    with run.lock():
        assert run.finished and run.kept == ["model"]
    (run.path / "model/a.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"model/a\.safetensors was cut short .* it is computed again"), run.lock():
        assert not run.finished and not run.model.exists() and not run.checkpoints.exists()
    assert json.loads((run.path / "run.json").read_text())["config"] == {"seed": 0}


def test_what_a_killed_process_left_half_written_goes_with_the_next_lock(tmp_path):
    run = Run(tmp_path)
    write_json(tmp_path / "run.json", {})
    (tmp_path / "trace").mkdir()
    (tmp_path / ".model.part").mkdir()
    for name in (".metrics.json.x.part", "trace/.step=1.y.part", ".model.part/weights"):
        (tmp_path / name).write_text("half")
    with run.lock():
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "run.json", "trace"]


def test_a_folder_that_was_no_run_keeps_what_lies_in_it(tmp_path):
    for name, text in {"table.csv": "x,y", "notes.json": "{", ".film.part": "half"}.items():
        (tmp_path / name).write_text(text)
    with Run(tmp_path).lock():
        assert sorted(path.name for path in tmp_path.iterdir()) == [".film.part", ".lock", "notes.json", "table.csv"]
