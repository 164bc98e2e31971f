"""The grids sweeper: unions of products, each point once."""

import itertools
from types import SimpleNamespace

import pytest


def points(grids, arguments=(), params=None):
    from hydra_plugins.essential_sparsity.grids import Grids  # here: Hydra's scan for plugins loads their modules anew

    sweeper = Grids(grids=grids, params=params)
    sweeper.hydra_context = SimpleNamespace(config_loader=None)  # type: ignore[assignment]
    return sweeper.points(list(arguments))


def test_a_union_of_products_in_order():
    found = points([{"sparsity": 0.0, "seed": "0,1"}, {"sparsity": "0.1,0.2", "seed": [0]}])
    assert found == [
        ["sparsity=0.0", "seed=0"],
        ["sparsity=0.0", "seed=1"],
        ["sparsity=0.1", "seed=0"],
        ["sparsity=0.2", "seed=0"],
    ]


def test_one_grid_is_the_product_that_hydra_makes():
    found = points(None, ["a=1,2", "b=x,y,z"])
    assert found == [[f"a={a}", f"b={b}"] for a, b in itertools.product("12", "xyz")]


def test_points_that_two_grids_share_come_once():
    found = points([{"seed": "0,1", "a": 1}, {"a": 1, "seed": "1,2"}])
    assert [sorted(point) for point in found] == [["a=1", f"seed={seed}"] for seed in (0, 1, 2)]


def test_the_command_line_replaces_an_axis_in_each_grid_and_adds_values():
    found = points([{"seed": "0,1,2", "a": 1}, {"seed": "0,1", "a": 2}], ["seed=7", "data.subset=rte"])
    assert found == [["seed=7", "a=1", "data.subset=rte"], ["seed=7", "a=2", "data.subset=rte"]]


def test_params_are_one_more_grid():
    assert points([{"a": 1}], params={"b": "1,2"}) == [["a=1"], ["b=1"], ["b=2"]]


@pytest.mark.parametrize("value, written", [(None, "null"), (True, "True"), (0.95, "0.95"), ("x", "x")])
def test_values_are_written_as_overrides(value, written):
    assert points([{"a": value}]) == [[f"a={written}"]]
