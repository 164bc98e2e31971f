"""More than 300 bad inputs, drawn and written down: each one line, an exit code, nothing half-written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from essential_sparsity.data.table import Table
from essential_sparsity.pruning import Pruner
from essential_sparsity.traces import HISTOGRAMS, MOMENTS
from tests.fuzz import bad_files
from tests.fuzz.commands import Tried
from tests.fuzz.written import SETTINGS, WORDS
from tests.streaming.stored_models import in_memory, tensors_of, write

INPUTS: dict[str, set[Any]] = {}
"""What was tried, by kind: the last test counts it."""

RAN: list[str] = []
"""The tests of this file that ran in this process."""


TABLE = {"text": "text", "label": "label", "num_holdout_rows": 1}


@pytest.fixture
def tried(monkeypatch, capsys, tmp_path, request) -> Iterator[Tried]:
    RAN.append(request.node.name)
    found = Tried(monkeypatch, capsys, tmp_path)
    found.inputs = INPUTS
    yield found


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """Write a small BERT, masks of it, and a model that another program left beside."""
    folder = tmp_path_factory.mktemp("stored")
    write(folder / "model", tensors_of("bert", torch.float32, num_layers=2))
    in_memory(folder / "model", Pruner(), "0.5").save(folder / "masks.safetensors")
    return folder


def drawing(number: int) -> Any:
    """Draw the same examples in every run, one folder for all of them."""
    return settings(
        max_examples=number, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


@drawing(70)
@given(st.data())
def test_safetensors_headers(tried: Tried, stored: Path, data: Any) -> None:
    content = (stored / "model/model.safetensors").read_bytes()
    spoilt = data.draw(st.one_of(bad_files.headers(content), bad_files.headers(content), bad_files.cut(content)))
    file = tried.folder / "model.safetensors"
    file.write_bytes(spoilt)
    out = tried.folder / "out"
    tried.refused("safetensors headers", spoilt, "prune", {"checkpoint": str(file), "out": str(out)})
    assert not list(out.glob("*.safetensors"))


@drawing(50)
@given(st.data())
def test_mask_files(tried: Tried, stored: Path, data: Any) -> None:
    content = (stored / "masks.safetensors").read_bytes()
    spoilt = data.draw(st.one_of(bad_files.masks(content), bad_files.masks(content), bad_files.cut(content)))
    file = tried.folder / "masks.safetensors"
    file.write_bytes(spoilt)
    if data.draw(st.booleans()):
        told = {"masks": [str(stored / "masks.safetensors"), str(file)]}
        tried.refused("mask files", spoilt, "compare", told)
    else:
        out = tried.folder / "out"
        told = {"checkpoint": str(stored / "model"), "out": str(out), "pruner.masks": str(file)}
        tried.refused("mask files", spoilt, "prune saved", told)
        assert not list(out.glob("*.safetensors"))


@drawing(60)
@given(st.data())
def test_tables(tried: Tried, monkeypatch, data: Any) -> None:
    whole = bad_files.parquet(pa.table({"text": ["a", "b", "c"], "label": [0, 1, 0]}))
    spoilt = data.draw(st.one_of(bad_files.tables(), bad_files.tables(), bad_files.cut(whole)))
    file = tried.folder / "table.parquet"
    file.write_bytes(spoilt)
    monkeypatch.setattr("essential_sparsity.apps.prune.job", lambda _: Table(train=str(file), **TABLE).check())
    assert "table.parquet" in tried.refused("tables (parquet)", spoilt, "prune", {})


@drawing(40)
@given(st.data())
def test_trace_files(tried: Tried, data: Any) -> None:
    lines = {"step": [1, 2], "weight": ["a", "a"], "num": [4, 4], "bin": [3, 3], "count": [4, 4]}
    whole = [pa.Table.from_pylist([dict(zip(lines, row)) for row in zip(*lines.values())], schema=schema)
             for schema in (HISTOGRAMS, MOMENTS)]  # fmt: skip
    files = [bad_files.parquet(table) for table in whole]
    which = data.draw(st.integers(0, 1))
    columns = whole[which].column_names
    less = whole[which].drop_columns(data.draw(st.lists(st.sampled_from(columns), min_size=1, max_size=3, unique=True)))
    other = whole[0].replace_schema_metadata({"code": data.draw(st.text("abc", max_size=5))})
    short = data.draw(bad_files.cut(files[which]))
    if data.draw(st.integers(0, 4)):
        files[which] = data.draw(st.sampled_from([bad_files.parquet(less), short]))
    else:
        files[0] = bad_files.parquet(other)
    for name, content in zip(("trace.parquet", "moments.parquet"), files, strict=True):
        (tried.folder / name).write_bytes(content)
    tried.refused("trace files", tuple(files), "trace", {"checkpoints": str(tried.folder)})


@drawing(25)
@given(st.data())
def test_json_of_runs(tried: Tried, data: Any) -> None:
    folder = tried.folder / "outputs/x/sparsity=0.5~0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("{}")
    (folder / "run.json").write_text('{"config": {}}')
    name = data.draw(st.sampled_from(["run.json", "metrics.json"]))
    text = data.draw(bad_files.json_texts())
    (folder / name).write_text(text)
    tried.refused("JSON of runs", (name, text), "report", {"name": "x"})


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings(tried: Tried, kind: str) -> None:
    for dotted, value in SETTINGS[kind]:
        tried.refused("settings", (kind, dotted, str(value)), kind.split(":")[0], {dotted: value})


@pytest.mark.parametrize("line", WORDS)
def test_words(tried: Tried, line: str) -> None:
    tried.typed("words as typed", line.split())


def test_more_than_300_were_tried_in_all() -> None:
    """Count them; run alone, there is nothing to count."""
    total = sum(map(len, INPUTS.values()))
    for name, inputs in sorted(INPUTS.items()):
        print(f"{len(inputs):5}  {name}")
    if len(RAN) < 5 + len(SETTINGS) + len(WORDS):
        pytest.skip(f"only some of the tests of this file ran here: {total} inputs")
    print(f"{total:5}  in all")
    assert total >= 300
