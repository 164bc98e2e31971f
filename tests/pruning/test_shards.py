"""Weights in shards over ranks are ranked as a whole: the same masks, to the tie, whatever the ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("shards")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("sharded_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        world: [json.loads((folder / f"{world}.{rank}.json").read_text()) for rank in range(world)] for world in (2, 4)
    }


@pytest.mark.parametrize("world", [2, 4])
def test_masks_of_shards_are_those_of_the_whole(told: dict[int, list[dict[str, Any]]], world: int) -> None:
    assert [rank["differing"] for rank in told[world]] == [[]] * world


@pytest.mark.parametrize("world", [2, 4])
def test_shards_are_zeroed_where_the_whole_is(told: dict[int, list[dict[str, Any]]], world: int) -> None:
    assert all(rank["weights"] and rank["gradient"] and rank["threshold"] for rank in told[world])


def test_what_needs_whole_weights_is_refused_on_every_rank(told: dict[int, list[dict[str, Any]]]) -> None:
    for conv1d, mixed, columns in (rank["refused"] for rank in told[2]):
        assert "magnitude × per row × unstructured reads whole weights" in conv1d
        assert "give trainer.strategy=ddp" in conv1d
        assert "weight 'blocks.5.weight' lies whole on a rank, others in shards" in mixed
        assert "only shards of the first dimension are ranked" in columns
