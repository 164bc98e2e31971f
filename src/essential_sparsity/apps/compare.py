"""essential-sparsity compare: similarity of masks, every pair, against chance → similarity.csv, figures, one page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from essential_sparsity.apps import conf


def job(composed: DictConfig) -> None:
    """Compare masks; called by Hydra."""
    from essential_sparsity.report import write_index
    from essential_sparsity.report.similarity import terminal_pairs, write_similarity
    from essential_sparsity.runs import atomic_path, write_json
    from essential_sparsity.similarity import read_masks, similarity_table

    container = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    config = {str(key): value for key, value in container.items()}
    asked = [config["masks"]] if isinstance(config["masks"], str) else config["masks"]
    if not isinstance(asked, list) or not all(isinstance(entry, str) for entry in asked):
        raise ValueError(f"masks={asked} is no list of paths: give masks=[a,b]")
    found = read_masks(asked)
    null, origin = _null(config, found)
    table = similarity_table(found, null=null)
    folder = Path(config["paths"]["outputs"]) / config["name"]
    with atomic_path(folder / "similarity.csv") as temporary:
        table.to_csv(temporary, index=False)
    named = [_told(each) for each in found]
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    write_json(folder / "similarity.json", {"masks": named, "displacement": origin, "command": command})
    write_similarity(table, folder / "similarity", masks=named, command=command, title=str(config["name"]))
    write_index(folder.parent)
    print(terminal_pairs(table))
    for path in ("similarity.csv", "similarity/index.html"):
        print(f"similarity: {folder / path}")


def _null(config: dict[str, Any], found: Sequence[Any]) -> tuple[pd.DataFrame | None, dict[str, Any] | None]:
    """Compute the displacement null where both checkpoints are given, and say what it came from."""
    from essential_sparsity.similarity import displacement_null, level_pairs, open_weights, read_weights

    paths = {key: config[key] for key in ("pretrained", "trained")}
    if None in paths.values():
        given, lacking = ("pretrained", "trained") if paths["trained"] is None else ("trained", "pretrained")
        if paths[given] is not None:
            raise ValueError(f"{given}={paths[given]} alone says nothing of displacement: add {lacking}=…")
        return None, None
    pruner = conf.instantiate(config["pruner"])
    weights = {key: read_weights(path) for key, path in paths.items()}
    for each in found:
        try:
            each.masks.check(weights["pretrained"])
        except ValueError as error:
            raise ValueError(f"pretrained={paths['pretrained']} does not fit {each.label}: {error}") from None
    digests = {f"{key} sha256": open_weights(path).digest() for key, path in paths.items()}
    draws = {"num_draws": config["num_draws"], "seed": config["seed"]}
    null = displacement_null(
        weights["pretrained"], weights["trained"], levels=level_pairs(found), pruner=pruner, **draws
    )
    return null, {**paths, **digests, **draws, **pruner.describe()}


def _told(each: Any) -> dict[str, Any]:
    """Say of masks what the page and similarity.json list."""
    return {
        "label": each.label,
        "path": str(each.path),
        "sparsity": each.masks.sparsity,
        "runs": each.copies,
        "masks sha256": each.masks.digest(),
        "parent sha256": each.masks.parent or "",
    }


def main() -> None:
    """Run the app."""
    conf.start("compare", job)
