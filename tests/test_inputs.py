"""Content hashes, suggestions, and derived files that appear whole or not at all."""

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from essential_sparsity.inputs import (
    cache_folder,
    cached_folder,
    digest_of,
    file_digest,
    hub_revision,
    load_arrays,
    own_code,
    row_hashes,
    suggest,
)


def test_a_misspelt_name_gets_a_suggestion_and_a_strange_one_the_list() -> None:
    assert suggest("qqqp", ["qqp", "rte"]) == ": did you mean 'qqp'?"
    assert suggest("zzz", ["rte", "qqp"]) == ": choose one of qqp, rte"
    assert suggest("zzz", []) == ""


def test_file_digests_follow_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert file_digest(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    file.write_bytes(b"abcd")
    assert file_digest(file) == "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"


class Own(torch.nn.Linear):
    """A class of one's own, on top of an installed one."""


def test_the_files_of_ones_own_classes_are_found_installed_ones_and_ours_are_not() -> None:
    digest = {"test_inputs.py": file_digest(__file__)}
    assert own_code(Own(1, 1)) == own_code(Own) == digest
    assert own_code(partial(partial(dict, lr=1), inner=partial(Own, 1))) == digest
    assert own_code(test_digests_tell_parts_apart) == digest
    assert own_code(torch.nn.Linear(1, 1), None, 3, cached_folder, partial(torch.optim.AdamW, lr=1)) == {}


def test_digests_tell_parts_apart() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of(np.arange(3)) == digest_of(np.arange(6)[:3]) != digest_of(np.arange(4))


def test_equal_rows_have_equal_hashes() -> None:
    first, second, third = row_hashes([b"a", b"b", b"a"])
    assert first == third != second


def test_cached_folders_are_written_once(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        np.save(folder / "numbers.npy", np.arange(4))

    folder = cached_folder(tmp_path / "x" / "key", write)
    assert load_arrays(folder, ["numbers"])["numbers"].tolist() == [0, 1, 2, 3]
    assert cached_folder(folder, lambda _: pytest.fail("written twice")) == folder


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        cached_folder(tmp_path / "key", fail)
    assert list(tmp_path.iterdir()) == []


def test_many_writers_agree(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def write(folder: Path) -> None:
        barrier.wait()
        (folder / "a").write_text("same")

    threads = [threading.Thread(target=cached_folder, args=(tmp_path / "key", write)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item.name for item in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key" / "a").read_text() == "same"


def test_the_cache_is_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ES_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder() == tmp_path / "user" / "essential_sparsity"
    monkeypatch.setenv("ES_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert cache_folder(tmp_path / "named") == tmp_path / "named"


def test_revisions_come_from_the_hub_cache_or_are_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    references = tmp_path / "models--someone--thing" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text("0123abc\n")
    assert hub_revision("someone/thing") == "0123abc"
    with pytest.raises(
        ValueError, match=r"hub dataset 'someone/thing' is not in the local cache.*paths\.data=<folder>"
    ):
        hub_revision("someone/thing", kind="dataset")
