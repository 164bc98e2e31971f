"""Corpora of text: documents in order, from parquet files, from the hub, or from Python's own manual."""

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from essential_sparsity.data.from_hub import hub_rows
from essential_sparsity.hub import asked
from essential_sparsity.inputs import digest_of, file_digest, hub_revision, suggest

TRAIN = "train"
CHUNK_ROWS = 20_000


@dataclass(frozen=True)
class Documents:
    """Texts, document after document: document i is the rows offsets[i] to offsets[i + 1]."""

    texts: pa.ChunkedArray  # large_string [rows]
    offsets: np.ndarray  # int64 [documents + 1]

    def chunks(self) -> Iterator[list[str]]:
        """Give the rows as lists of strings, a bounded number at a time; a missing text is an empty one."""
        for start in range(0, len(self.texts), CHUNK_ROWS):
            yield [text or "" for text in self.texts.slice(start, CHUNK_ROWS).to_pylist()]


class Corpus(Protocol):
    """What blocks of text and vocabularies are made from."""

    def check(self) -> None:
        """Check files, columns and types from metadata; ValueError or FileNotFoundError in one line."""
        ...

    def inputs(self) -> dict[str, str]:
        """Give a hash (or hub revision) per input."""
        ...

    def splits(self) -> Sequence[str]:
        """Name the splits: "train" first, then one of other documents that are held out, where there is one."""
        ...

    def digest(self, split: str) -> str:
        """Give a hash of all that decides the split's documents, without reading the texts."""
        ...

    def documents(self, split: str) -> Documents:
        """Read the documents of a split."""
        ...


# --- parquet files and the hub ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextCorpus:
    """A table with a column of text: a parquet file, a folder of `<split>.parquet`, or a data set of the hub.

    `path` is a file or a folder; without it, and with `root` set, the folder is `<root>/<name>`; else `hub_id` is read.
    A document is all rows of one value of the column `source`, in order; without such a column it is `document_rows`
    rows. A split `held_out_split` beside the training one, where it is there, must hold other documents.
    """

    name: str | None = None
    path: str | Path | None = None
    root: str | Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    text: str = "text"
    source: str | None = "source"
    held_out_split: str | None = "validation"
    document_rows: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        if isinstance(self.document_rows, bool) or not isinstance(self.document_rows, int) or self.document_rows < 1:
            raise ValueError(f"corpus.document_rows={self.document_rows!r} is no whole number of at least 1: give one")
        if self._local is None and self.hub_id is None:
            raise ValueError("the corpus has no path and no hub_id: give corpus.path=<file or folder>, or paths.data")

    @property
    def _local(self) -> Path | None:
        """The local file or folder, or None: the hub."""
        if self.path is not None:
            return Path(self.path)
        return Path(self.root) / self.name if self.root is not None and self.name is not None else None

    def splits(self) -> list[str]:
        """Name the training split, and the held-out one where it is there."""
        local, held_out = self._local, self.held_out_split
        if held_out is None:
            return [TRAIN]
        there = self._on_hub() if local is None else [file.stem for file in local.glob("*.parquet")]
        return [TRAIN, held_out] if held_out in there else [TRAIN]

    def _on_hub(self) -> list[str]:
        from datasets import get_dataset_split_names

        def question() -> list[str]:
            return [str(name) for name in get_dataset_split_names(cast(str, self.hub_id), revision=self.revision)]

        return asked(question, what=f"hub data {self.hub_id!r}", remedy="paths.data=<folder>")

    def _file(self, split: str) -> Path:
        local = self._local
        assert local is not None
        if local.is_file():
            return local
        if not local.is_dir():
            there = [item.name for item in local.parent.iterdir()] if local.parent.is_dir() else []
            raise FileNotFoundError(f"corpus {str(local)!r} does not exist{suggest(local.name, there)}")
        if not (local / f"{split}.parquet").is_file():
            raise FileNotFoundError(
                f"{local} has no {split}.parquet{suggest(split, [item.stem for item in local.glob('*.parquet')])}"
            )
        return local / f"{split}.parquet"

    def check(self) -> None:
        """Check that local files hold rows of text, and that no document of one split is in another."""
        if self._local is None:
            return
        known: dict[str, str] = {}
        for split in self.splits():
            file = self._file(split)
            schema = pq.read_schema(file)
            if self.text not in schema.names:
                raise ValueError(f"{file} has no column {self.text!r}{suggest(self.text, schema.names)}")
            kind = schema.field(self.text).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise ValueError(f"column {self.text!r} of {file} holds {kind}, not text: name one with corpus.text=")
            if pq.read_metadata(file).num_rows == 0:
                raise ValueError(f"{file} is an empty corpus, it has no rows: give a file with text")
            if self.source in schema.names:
                sources = set(pq.read_table(file, columns=[self.source])[self.source].unique().to_pylist())
                if common := sorted(map(str, sources & known.keys())):
                    raise ValueError(
                        f"{file} shares {len(common)} documents with {TRAIN}, first {common[0]!r}: "
                        "a held-out document is never a training document, remove them from one"
                    )
                known |= dict.fromkeys(sources, split)

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of each local file, or the hub's commit."""
        if self._local is None:
            return {str(self.hub_id): self._commit()}
        files = [self._file(split) for split in self.splits()]
        return {f"{self._local.stem}/{file.name}": file_digest(file) for file in files}

    def needs(self) -> dict[str, Callable[[], object]]:
        """Say what is needed from the hub, and how it is brought into the local cache; nothing of local files."""
        return {} if self._local is not None else {str(self.hub_id): functools.partial(self._rows, TRAIN)}

    def _commit(self) -> str:
        return hub_revision(cast(str, self.hub_id), kind="dataset", revision=self.revision)

    def digest(self, split: str) -> str:
        """Hash the file's (or the commit's) hash and how documents are read from it."""
        content = file_digest(self._file(split)) if self._local is not None else f"{self._commit()}/{split}"
        return digest_of(content, json.dumps([self.text, self.source, self.document_rows]))

    def documents(self, split: str) -> Documents:
        """Read the documents of a split; rows of one source come together, in the order of the file."""
        if self._local is not None:
            file = self._file(split)
            there = pq.read_schema(file).names
            table = pq.read_table(file, columns=[name for name in (self.text, self.source) if name in there])
        else:
            table = self._read_hub(split)
        if self.source not in table.column_names:
            starts = np.arange(0, len(table), self.document_rows)
            return Documents(table[self.text].cast(pa.large_string()), np.append(starts, len(table)).astype(np.int64))
        codes = table[self.source].combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        texts = table[self.text].cast(pa.large_string())
        texts = texts if np.array_equal(order, np.arange(len(order))) else texts.take(pa.array(order))
        return Documents(texts, np.concatenate([[0], np.cumsum(np.bincount(codes))]).astype(np.int64))

    def _rows(self, split: str) -> Any:
        return hub_rows(cast(str, self.hub_id), split=split, revision=self.revision)

    def _read_hub(self, split: str) -> pa.Table:
        rows = self._rows(split)
        table = cast(pa.Table, rows.with_format("arrow")[:])
        if self.text not in table.column_names:
            raise ValueError(f"{self.hub_id} has no column {self.text!r}{suggest(self.text, table.column_names)}")
        return table.select([name for name in (self.text, self.source) if name in table.column_names])


# --- no download ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _topics() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    return tuple(topics[name] for name in sorted(topics))


@dataclass(frozen=True)
class EmbeddedCorpus:
    """The English text that Python itself carries (`pydoc_data.topics`, 465,000 characters): a topic a document."""

    def check(self) -> None:
        """Nothing outside Python is read."""

    def splits(self) -> list[str]:
        """Name the only split: held-out topics are chosen from it."""
        return [TRAIN]

    def inputs(self) -> dict[str, str]:
        """Give the hash of the manual's text, which differs between versions of Python."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return {f"pydoc_data.topics of Python {version}": self.digest(TRAIN)}

    def digest(self, split: str) -> str:
        """Hash the text."""
        return digest_of(*_topics())

    def documents(self, split: str) -> Documents:
        """Give the topics in alphabetical order."""
        texts = pa.chunked_array([pa.array(_topics(), pa.large_string())])
        return Documents(texts, np.arange(len(texts) + 1, dtype=np.int64))
