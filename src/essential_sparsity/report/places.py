"""Pictures of where the smallest weights lie: every matrix as a small map (the paper's Figure 1)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from essential_sparsity.report import style
from essential_sparsity.report.drawing import empty_figure, pictures_html, write_picture
from essential_sparsity.report.figures import short_kind
from essential_sparsity.report.panels import percent
from essential_sparsity.report.tables import saved_table
from essential_sparsity.runs import RunRecord, atomic_path

METHOD = (
    "One threshold over all prunable weights; each map is a matrix in tiles of equal size, outputs downwards, inputs "
    "to the right, as dark as the share of the tile that lies under the threshold. Stripes are outputs or inputs that "
    "are small as a whole; were the places independent, a tile would differ from its matrix by chance alone."
)


@dataclass(frozen=True)
class Places:
    """Where one model's smallest weights lie: layer, kind, num, num_pruned, height, width, tiles."""

    name: str
    lines: tuple[dict[str, Any], ...]

    @property
    def share(self) -> float:
        """Share of all prunable weights that goes."""
        return _share(self.lines)

    def by(self, key: str) -> dict[Any, float]:
        """Share that goes per layer or kind, in the model's order."""
        values = dict.fromkeys(line[key] for line in self.lines)
        return {value: _share([line for line in self.lines if line[key] == value]) for value in values}


def _share(lines: Sequence[Mapping[str, Any]]) -> float:
    return sum(line["num_pruned"] for line in lines) / sum(line["num"] for line in lines)


def read_places(records: Sequence[RunRecord]) -> list[Places]:
    """Read the places of measured models that have them."""
    tables = [(record, record.places()) for record in records]
    return [
        Places(str(record.config.get("model") or record.path.name), tuple(table.to_pylist()))
        for record, table in tables
        if table is not None
    ]


def places_figure(found: Places) -> Figure:
    """A row per layer, a column per kind, a map per matrix; one scale from nothing to twice the model's share."""
    kinds, layers = list(found.by("kind")), sorted(found.by("layer"))
    figure = empty_figure(1.0 + 1.0 * len(kinds), 0.7 + 0.6 * len(layers))
    grid = figure.subplots(len(layers), len(kinds), squeeze=False)
    colours = LinearSegmentedColormap.from_list("heat", [(at, colour) for at, colour in style.HEAT])
    picture = None
    for line in found.lines:
        axes = grid[layers.index(line["layer"]), kinds.index(line["kind"])]
        tiles = np.asarray(line["tiles"]).reshape(line["height"], line["width"])
        picture = axes.imshow(tiles, cmap=colours, vmin=0, vmax=min(1.0, 2 * found.share), aspect="auto")
        axes.set_title(percent(line["num_pruned"] / line["num"]), fontsize=5.5, pad=1)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
    for kind, axes in zip(kinds, grid[-1]):
        axes.set_xlabel(short_kind(kind))
    for layer, row in zip(layers, grid):
        row[0].set_ylabel(f"layer {layer}")
    if picture is not None:
        figure.colorbar(picture, ax=grid, fraction=0.02, pad=0.01, label="share of the tile that goes")
    return figure


def spread_of_tiles(found: Places) -> dict[str, float]:
    """Standard deviation of tiles around their matrix's share, over what independent places would give, per kind."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for line in found.lines:
        tiles, share = np.asarray(line["tiles"]), line["num_pruned"] / line["num"]
        by_chance = np.sqrt(max(share * (1 - share), 1e-12) * len(tiles) / line["num"])
        ratios[line["kind"]].append(float(np.sqrt(np.mean((tiles - share) ** 2)) / by_chance))
    return {kind: float(np.mean(values)) for kind, values in ratios.items()}


def places_section(found: Sequence[Places], out: Path) -> str:
    """Write `out/places.csv` and a picture per model; give the section, empty where no places were measured."""
    if not found:
        return ""
    with atomic_path(out / "places.csv") as temporary:
        rows = [{"model": each.name, **line} for each in found for line in each.lines]
        pd.DataFrame(rows).drop(columns="tiles").to_csv(temporary, index=False)
    text = ""
    for index, each in enumerate(found):
        alt = f"Where the smallest weights of {each.name} lie: a map per matrix, a row per layer, a column per kind"
        picture = write_picture(partial(places_figure, each), out / "figures" / f"places-{index}", alt=alt)
        header = ["kind", "goes", "tiles spread, against chance"]
        kinds, spread = each.by("kind"), spread_of_tiles(each)
        lines = [[short_kind(kind), percent(share), f"{spread[kind]:.1f} ×"] for kind, share in kinds.items()]
        text += (
            f"<h3>{escape(each.name)}</h3><p class=lead>{escape(sentence(each))}</p>"
            f"{pictures_html([picture])}"
            f"{saved_table(out, f'places-{index}', header, lines, caption=f'Shares by kind, {each.name}')}"
        )
    return f"<section><h2>Where the smallest weights lie</h2>{text}<p class=note>{escape(METHOD)}</p></section>"


def sentence(found: Places) -> str:
    """From which layer and kind least goes, and from which most."""
    ends = []
    for key in ("layer", "kind"):
        shares = found.by(key)
        low, high = min(shares, key=lambda value: shares[value]), max(shares, key=lambda value: shares[value])
        ends.append(f"by {key} from {percent(shares[low])} ({low}) to {percent(shares[high])} ({high})")
    return f"The smallest {percent(found.share)} of the weights: {'; '.join(ends)}."


def place_lines(found: Sequence[Places]) -> list[tuple[str, str]]:
    """What stands beside the paper's Figure 1."""
    return [(each.name, sentence(each)) for each in found]
