"""A machine that is too small: one line with a remedy, whoever noticed it; a failure that cannot be written is told."""

import errno
import os

import pytest

from essential_sparsity.apps.guard import guarded, kind_of, one_line
from essential_sparsity.runs import Run

TOO_SMALL = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), "DiskFull"),
    (OSError("Error writing bytes to file. Detail: [errno 27] File too large"), "DiskFull"),
    (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), "DiskFull"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "OutOfMemory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "OutOfMemory"),
    (MemoryError(), "OutOfMemory"),
    (RuntimeError("shapes differ"), "RuntimeError"),
    (OSError(errno.EACCES, os.strerror(errno.EACCES)), "PermissionError"),
]


@pytest.mark.parametrize("error, kind", TOO_SMALL)
def test_what_the_machine_lacks_is_named(error, kind):
    assert kind_of(error) == kind
    assert ("and the same command goes on" in one_line(error)) == (kind in ("DiskFull", "OutOfMemory"))


def test_a_failure_that_cannot_be_written_is_told_all_the_same(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = Run(tmp_path)
    run.start({"config": {}})
    monkeypatch.setattr("essential_sparsity.runs.write_json", full)
    outcome = guarded(lambda: full(), overrides=["a=1"], run=run, record=None, always=True)
    assert outcome.status == "failed" and outcome.expected and "no failure.json" in outcome.message
    assert not list(tmp_path.glob("failure.json"))
