"""Static figures on paper: laid out for one column and for two, written as SVG and PNG, and put into pages."""

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from essential_sparsity.report import style
from essential_sparsity.runs import atomic_path

Draw = Callable[[], Figure | None]

NARROW_FOLDER = "figures_one_column"
"""Sibling of `figures/` that holds the same figures for one column."""

LETTERS_PER_INCH, LEGEND_LINE, LONGEST_LABEL = 21, 0.16, 72  # of legends; a line in inches


@dataclass(frozen=True)
class Picture:
    """A figure that was written: its files, and what it shows in words. `narrow` is laid out for one column."""

    wide: Path  # the SVG; the PNG lies beside
    narrow: Path
    alt: str
    share: float = 1.0  # of the page's width for pictures

    @property
    def files(self) -> list[Path]:
        """All four files."""
        return [
            path.with_name(f"{path.name.removesuffix('.svg')}.{suffix}")
            for path in (self.wide, self.narrow)
            for suffix in _SUFFIXES
        ]

    def html(self) -> str:
        """Both widths inside the page: a phone is shown the narrow one."""
        wide, narrow = (base64.b64encode(path.read_bytes()).decode() for path in (self.wide, self.narrow))
        return (
            f'<figure class=picture data-name="{escape(self.wide.stem)}"><picture>'
            f'<source media="(max-width: 640px)" srcset="data:image/svg+xml;base64,{narrow}">'
            f'<img alt="{escape(self.alt)}" style="--share:{self.share:.2f}" '
            f'src="data:image/svg+xml;base64,{wide}"></picture></figure>'
        )


_SUFFIXES = ("svg", "png")


def write_picture(draw: Draw, path: Path, *, alt: str) -> Picture | None:
    """Draw for two columns and for one: `…/figures/name.svg|png`, `…/figures_one_column/name.svg|png`.

    `path` is the figure's place under a folder `figures`, without an ending. None where there is nothing to draw.
    """
    wide = path.with_name(f"{path.name}.svg")
    root = next(folder for folder in path.parents if folder.name == "figures")
    narrow = root.with_name(NARROW_FOLDER) / wide.relative_to(root)
    figure = _drawn(draw, wide, style.TWO_COLUMNS)
    if figure is None:
        return None
    if figure.get_figwidth() > style.ONE_COLUMN:
        _drawn(draw, narrow, style.ONE_COLUMN)
    else:  # the same figure
        for suffix in _SUFFIXES:
            with atomic_path(narrow.with_name(f"{path.name}.{suffix}")) as temporary:
                temporary.write_bytes(wide.with_name(f"{path.name}.{suffix}").read_bytes())
    return Picture(wide, narrow, alt, figure.get_figwidth() / style.TWO_COLUMNS)


def _drawn(draw: Draw, path: Path, width: float) -> Figure | None:
    with style.matplotlib_style(width=width):
        figure = draw()
        if figure is not None:
            save_figure(figure, path)
    return figure


def pictures_html(pictures: Iterable[Picture | None]) -> str:
    """Put pictures into a page, self-contained."""
    return "".join(picture.html() for picture in pictures if picture is not None)


def empty_figure(width: float, height: float) -> Figure:
    """A figure that needs no screen, of this many inches, but no wider than the style allows."""
    figure = Figure(figsize=(min(width, style.available_width()), height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_grid(figure: Figure, num: int, *, least: float = 2.0, **options: Any) -> list[Axes]:
    """Give `num` plots in as few rows as leave each `least` inches; the figure grows by its rows."""
    width, height = figure.get_size_inches()
    across = max(1, min(num, int(width / least)))
    down = -(-num // across)
    figure.set_size_inches(width, height * down)
    every = np.atleast_1d(figure.subplots(down, across, squeeze=False, **options)).ravel()
    for axes in every[num:]:
        axes.remove()
    return list(every[:num])


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend under the plots in as many columns as there is room for; the figure grows by it."""
    labels = [label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…" for label in labels]
    if not labels:
        return
    width, height = figure.get_size_inches()
    columns = max(1, min(4, int(width * LETTERS_PER_INCH) // (max(map(len, labels)) + 6)))
    figure.set_size_inches(width, height + LEGEND_LINE * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as SVG and, beside it, as PNG, each whole or not at all; equal figures give equal files."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")  # laid out once, for both files
    figure.set_dpi(style.DOTS_PER_INCH)
    with atomic_path(path) as temporary:
        FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None})
    figure.set_dpi(style.DOTS_PER_INCH)  # the SVG's points are another unit
    with atomic_path(path.with_name(f"{path.name.removesuffix('.svg')}.png")) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
