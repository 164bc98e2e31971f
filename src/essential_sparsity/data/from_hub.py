"""Rows of the hub's data sets, downloaded once into the local cache; asked again where the hub is busy."""

from typing import Any

from essential_sparsity.hub import asked


def hub_rows(
    hub_id: str,
    subset: str | None = None,
    *,
    split: str,
    revision: str | None = None,
    remedy: str = "paths.data=<folder>",
) -> Any:
    """Give one split of a data set; all of its splits are in the local cache then.

    Raises ValueError saying in one line why there is none, with the remedy.
    """
    from datasets import load_dataset

    def question() -> Any:
        return load_dataset(hub_id, subset, split=split, revision=revision)

    return asked(question, what=f"hub data {hub_id!r}", remedy=remedy)
