"""Static figures of one panel for papers and slides: functions of tables, drawn without a screen."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from essential_sparsity.analysis import EssentialSparsity, SparsityCurve
from essential_sparsity.analysis.metrics import spoken
from essential_sparsity.report import style
from essential_sparsity.report.drawing import empty_figure, legend_below, plot_grid, write_picture
from essential_sparsity.report.panels import Panel, percent, points

FIGURES = {
    "curve": "{} against sparsity, every run as a dot; beside it the paired loss around the tolerance",
    "sensitivity": "Essential sparsity against the tolerated loss, with intervals",
    "training": "Final training loss, and share of rows whose prediction flips, at every level",
    "layers": "Share of zeros of every prunable matrix, block by kind",
}
"""What each figure of a panel shows; the metric's name goes in."""


def write_figures(panel: Panel, folder: Path, name: str) -> list[Path]:
    """Write every figure of a panel for one column and for two, as SVG and PNG: curve, sensitivity, training, layers.

    `folder` is named `figures`.
    """
    drawings = {"curve": curve_figure, "sensitivity": sensitivity_figure, "training": training_figure,
                "layers": layer_figure}  # fmt: skip
    pictures = [
        write_picture(
            partial(draw, panel), folder / f"{kind}-{name}", alt=FIGURES[kind].format(spoken(panel.result.metric))
        )
        for kind, draw in drawings.items()
    ]
    return [path for picture in pictures if picture for path in picture.files]


def curve_figure(panel: Panel) -> Figure:
    """The metric against sparsity with every run as a dot; beside it the paired loss around ε."""
    figure = empty_figure(style.TWO_COLUMNS, 2.3)
    left, right = plot_grid(figure, 2)
    _draw_metric(left, panel)
    _draw_loss(right, panel)
    left.set_title(f"{panel.title}: {panel.result.split} {spoken(panel.result.metric)}", wrap=True)
    legend_below(figure, *left.get_legend_handles_labels())
    return figure


def sensitivity_figure(panel: Panel) -> Figure | None:
    """Essential sparsity against ε, with intervals; an open end reaches the top of the axis."""
    found = panel.result.sensitivity
    if not found:
        return None
    figure = empty_figure(style.ONE_COLUMN, 2.2)
    axes = figure.subplots()
    for i, each in enumerate(found):
        low, high = each.ci_low or 0.0, 1.0 if each.ci_high is None else each.ci_high
        axes.plot([i, i], [low, high], color=style.CURVE, lw=4, alpha=0.3, solid_capstyle="butt")
        if each.essential_sparsity is not None:
            axes.plot(i, each.essential_sparsity, "o", color=style.CURVE)
    axes.set_xticks(range(len(found)), [points(panel.result, each.epsilon) for each in found])
    axes.set(xlabel="tolerated loss ε", ylabel="essential sparsity", ylim=(0, 1))
    return figure


def training_figure(panel: Panel) -> Figure | None:
    """Final training loss, and share of rows whose prediction flips, per level."""
    table = pd.DataFrame(panel.result.levels)
    parts = {"train_loss": "final training loss", "flipped": "share of rows that flip"}
    shown = [name for name in parts if has_numbers(panel.result, name)]
    if not shown:
        return None
    figure = empty_figure(style.ONE_COLUMN * len(shown), 2.1)
    for axes, name in zip(plot_grid(figure, len(shown)), shown):
        axes.plot(table["sparsity"], table[name].astype(float), "o-", color=style.CURVE, ms=3)
        if name == "flipped" and panel.result.dense_flipped is not None:
            axes.axhline(panel.result.dense_flipped, color=style.NOISE, ls="--", label="another seed alone")
            axes.legend()
        axes.set(xlabel="sparsity of the prunable weights", ylabel=parts[name], ylim=(0, None))
    return figure


def layer_figure(panel: Panel) -> Figure | None:
    """Where the zeros lie: sparsity of every prunable matrix at the level shown (Figure 1 of the paper)."""
    if panel.level not in panel.layers:
        return None
    grid = layer_grid(panel.layers[panel.level])
    figure = empty_figure(1.4 + 0.62 * grid.shape[1], 1.1 + 0.2 * grid.shape[0])
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("heat", [(at, colour) for at, colour in style.HEAT])
    picture = axes.pcolormesh(grid.to_numpy(), cmap=colours, vmin=0, vmax=max(0.01, float(grid.max().max())))
    axes.set_xticks(
        np.arange(grid.shape[1]) + 0.5, [short_kind(kind) for kind in grid.columns], rotation=30, ha="right"
    )
    axes.set_yticks(np.arange(grid.shape[0]) + 0.5, [str(layer) for layer in grid.index])
    axes.set(ylabel="block", title=f"share of zeros at sparsity {panel.level:g}")
    axes.invert_yaxis()
    axes.grid(False)
    figure.colorbar(picture, ax=axes, pad=0.02)
    return figure


def layer_grid(layers: pd.DataFrame) -> pd.DataFrame:
    """Share of zeros per block (rows) and kind of matrix (columns, in the model's order)."""
    pruned, num = (
        layers.pivot_table(index="layer", columns="kind", values=name, aggfunc="sum") for name in ("num_pruned", "num")
    )
    return (pruned / num).sort_index().reindex(columns=list(dict.fromkeys(layers["kind"])))


def has_numbers(result: EssentialSparsity, column: str) -> bool:
    """Whether any level of a result has this number."""
    return any(line[column] is not None for line in result.levels)


def short_kind(kind: str) -> str:
    """Last two words of a kind: `attention.output.dense` reads `output.dense`."""
    return ".".join(str(kind).split(".")[-2:])


def _draw_metric(axes: Axes, panel: Panel) -> None:
    curve, result = panel.curve, panel.result
    table = pd.DataFrame(result.levels)
    if result.dense is not None:
        axes.axhspan(result.dense - result.epsilon, result.dense, color=style.BAND, alpha=0.15, lw=0, label="ε band")
        if result.noise_band:
            low, high = result.dense - result.noise_band, result.dense + result.noise_band
            axes.axhspan(low, high, color=style.NOISE, alpha=0.18, lw=0, label="A/A: dense of another seed")
    if result.chance is not None:
        axes.axhline(result.chance, color=style.MUTED, ls=":", label="chance")
    for i, (other, found) in enumerate(panel.beside):
        _draw_runs(axes, other, found, style.control_colour(i), 0.8)
    if len(table) > 1 and result.dense is not None:
        low, high = result.dense + table["low"], result.dense + table["high"]
        axes.fill_between(table["sparsity"], low, high, color=style.SPREAD, alpha=0.15, lw=0, label="95 % interval")
    _draw_runs(axes, curve, result, style.CURVE, 1.0)
    _draw_point(axes, result, (result.dense or 0.0) - result.epsilon)
    axes.set(xlabel="sparsity of the prunable weights", ylabel=spoken(result.metric), xlim=(-0.02, 1))


def _draw_loss(axes: Axes, panel: Panel) -> None:
    result = panel.result
    table = pd.DataFrame(result.levels)
    axes.axhspan(-result.epsilon, 0, color=style.BAND, alpha=0.15, lw=0)
    axes.axhline(0, color=style.MUTED, lw=0.8)
    if len(table) > 1:
        axes.fill_between(table["sparsity"], table["low"], table["high"], color=style.SPREAD, alpha=0.15, lw=0)
        axes.plot(table["sparsity"], table["difference"], "o-", color=style.CURVE, ms=3, label="mean difference")
        axes.plot(table["sparsity"], table["fitted"], "--", color=style.INK, lw=1, label="falling fit")
        axes.legend(loc="lower left")
    _draw_point(axes, result, -result.epsilon)
    reach = 6 * result.epsilon
    axes.set(xlabel="sparsity of the prunable weights", ylabel="paired difference to dense", xlim=(-0.02, 1))
    axes.set_ylim(-reach, reach / 2)
    axes.set_title("around the turn")


def _draw_runs(axes: Axes, curve: SparsityCurve, result: EssentialSparsity, colour: str, alpha: float) -> None:
    axes.plot(curve.points["sparsity"], curve.points["value"], "o", ms=2.5, color=colour, alpha=0.55 * alpha, mew=0)
    table = pd.DataFrame(result.levels)
    if len(table):
        axes.plot(table["sparsity"], table["value"], "-", color=colour, lw=1.3 * alpha, alpha=alpha, label=curve.label)


def _draw_point(axes: Axes, result: EssentialSparsity, height: float) -> None:
    at = result.essential_sparsity
    if at is None:
        return
    low, high = result.ci_low or 0.0, 1.0 if result.ci_high is None else result.ci_high
    axes.plot([low, high], [height, height], color=style.POINT, lw=1.5)
    label = f"essential sparsity {percent(at)}"
    axes.plot(at, height, marker="*", ms=9, color=style.POINT, mec="white", mew=0.6, ls="", label=label, zorder=5)
