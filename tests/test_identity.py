"""The identity of a call from Python: what decides its result, said the same in every process."""

import functools

import pytest

from essential_sparsity.callbacks import SparsityRecorder
from essential_sparsity.identity import told
from essential_sparsity.pruning import Pruner


def test_a_parent_that_is_watched_is_the_same_parent():
    parent = {"seed": 1, "task": functools.partial(dict, lr=0.1), "run": "somewhere"}
    assert (
        told({**parent, "callbacks": [SparsityRecorder(5)]})
        == told(parent)
        == {"seed": 1, "task": "builtins.dict(lr=0.1)"}
    )


def test_values_say_what_they_are_and_objects_without_a_name_are_refused():
    assert told([Pruner(), True]) == [repr(Pruner()), True]
    with pytest.raises(ValueError, match="has no lasting name, so the run has no identity: give record="):
        told({"data": object()})
