"""Files that are nearly right: headers, metadata, tables and JSON with one thing wrong, drawn by hypothesis."""

import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), -1), st.floats(allow_nan=False), st.text(max_size=5),
    st.lists(st.integers(-3, 3), max_size=1), st.just({}), st.just([[]]),
)  # fmt: skip


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Give a safetensors file's header and data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    """Put a header, of whatever kind, in front of data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@st.composite
def cut(draw: Callable[..., Any], content: bytes) -> bytes:
    """Cut a file short, at any byte."""
    return content[: draw(st.integers(0, len(content) - 1))]


@st.composite
def headers(draw: Callable[..., Any], content: bytes) -> bytes:
    """Spoil one entry of a safetensors header, its length, or the header as a whole."""
    header, data = split(content)
    names = [name for name in header if name != "__metadata__"]
    name, key = draw(st.sampled_from(names)), draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    how = draw(st.integers(0, 6))
    if how == 0:
        return joined(draw(st.one_of(JUNK, st.lists(JUNK, min_size=1, max_size=2))), data)
    if how == 1:
        header[name] = draw(JUNK)
    elif how == 2:
        del header[name][key]
    elif how == 3:
        length = draw(st.integers(2**20, 2**64 - 1))
        return length.to_bytes(8, "little") + content[8:]
    elif how == 4:
        header[name]["shape"] = [*header[name]["shape"], draw(st.integers(2, 2**40))]
    elif how == 5:
        begin, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = draw(
            st.sampled_from([[end, begin], [begin, end, end], [begin], [begin, end + 4]])
        )
    else:
        header[name][key] = draw(JUNK)
    return joined(header, data)


@st.composite
def masks(draw: Callable[..., Any], content: bytes) -> bytes:
    """Spoil what a masks file tells in its metadata, or leave weights out."""
    header, data = split(content)
    told = header["__metadata__"]
    key = draw(st.sampled_from(["format", "shapes", "score", "allocation", "pattern", "num_ties", "sparsity"]))
    how = draw(st.integers(0, 3))
    if how == 0:
        del told[key]
    elif how == 1:
        key = draw(st.sampled_from(["format", "shapes", "num_ties", "sparsity", "requested"]))
        told[key] = draw(st.text("abcxyz[]{}:/", min_size=1, max_size=8))
    elif how == 2:
        shapes = json.loads(told["shapes"])
        shapes[draw(st.sampled_from(sorted(shapes)))] = draw(
            st.sampled_from([[1], [3, 999], "x", None, [0], [[2]], [-4]])
        )
        told["shapes"] = json.dumps(shapes)
    else:
        shapes = json.loads(told["shapes"])
        shapes[draw(st.text("abc.", min_size=1, max_size=6))] = [8, draw(st.integers(1, 99))]
        told["shapes"] = json.dumps(shapes)
    return joined(header, data)


def parquet(table: pa.Table) -> bytes:
    """Give a table's parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@st.composite
def tables(draw: Callable[..., Any]) -> bytes:
    """Spoil a table of text and label: columns missing, of other types, empty, without labels or text."""
    text: list[Any] = draw(st.lists(st.text("ab ", min_size=1, max_size=4), min_size=3, max_size=6))
    label: list[Any] = [index % 2 for index in range(len(text))]
    how = draw(st.integers(0, 5))
    if how == 0:
        return parquet(pa.table({draw(st.text("abcdefg", min_size=1, max_size=4)): text, "label": label}))
    if how == 1:
        return parquet(pa.table({"text": text, draw(st.text("abcdefg", min_size=1, max_size=4)): label}))
    if how == 2:
        label[draw(st.integers(0, len(label) - 1))] = None
    elif how == 3:
        text[draw(st.integers(0, len(text) - 1))] = None
    elif how == 4:
        label = [draw(st.floats(0.1, 0.9)) for _ in label]
    else:
        label = [draw(st.integers(2, 9))] * len(label) if draw(st.booleans()) else [-1 - n for n in label]
        if label[0] > 0:
            label = ["one"] * (len(label))
    return parquet(pa.table({"text": text, "label": label}))


def json_texts() -> st.SearchStrategy[str]:
    """Draw what a run's JSON file may hold when it is no run's: no JSON, or JSON of another kind."""
    cut_short = st.sampled_from(["", "{", '{"config": ', '{"config": {}', "[", "nul", "\x00\x00", "{]"])
    other = st.one_of(st.integers(), st.lists(st.integers(), max_size=2), st.text("ab", max_size=3)).map(json.dumps)
    return st.one_of(cut_short, other)
