"""Pictures and page of sparsity traces: functions of SparsityTrace, drawn without a screen."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from essential_sparsity.analysis import SparsityTrace, detect_abrupt_sparsification
from essential_sparsity.analysis.trace import RELATIVE
from essential_sparsity.report import style
from essential_sparsity.report.figures import empty_figure, save_figure, short_kind
from essential_sparsity.report.similarity import POLICY
from essential_sparsity.report.tables import html_table
from essential_sparsity.runs import atomic_path

Traces = Mapping[str, SparsityTrace]
"""Label → trace; the first one is drawn in detail."""

Found = Sequence[Mapping[str, Any]]
"""Entries of change_points.json."""

GRID_OF_MULTIPLES = tuple(np.geomspace(0.005, 2, 27))
MULTIPLES = (0.02, 0.05, 0.1, 0.2)


def change_points(
    trace: SparsityTrace, *, multiples: Sequence[float] = MULTIPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """Give the entries of change_points.json: the whole model by the definition, then thresholds, layers and kinds."""
    asked: list[dict[str, Any]] = [{}, {"multiples": tuple(multiples)}, {"by": "layer"}, {"by": "kind"}]
    entries = []
    for each in asked:
        if each.get("by") and trace.share(by=each["by"]).shape[1] < 2:
            continue
        found = detect_abrupt_sparsification(trace, seed=seed, **each)
        entries.append(
            {"by": each.get("by", "total"), "multiples": list(each.get("multiples", (RELATIVE,))), **found.record()}
        )
    return entries


def write_trace_page(
    traces: Traces, folder: Path, *, found: Found, checkpoints: Sequence[Mapping[str, Any]] = (), command: str = ""
) -> list[Path]:
    """Write `folder/index.html` (self-contained) and `folder/figures/*.svg|png`."""
    written, pictures = write_trace_figures(traces, folder / "figures", found=found)
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(_page(traces, pictures, found, checkpoints, command), encoding="utf-8")
    return [*written, folder / "index.html"]


LONGEST_LABEL, LETTERS_PER_INCH, LEGEND_LINE = 72, 14, 0.19  # of legends in 8 points; a line in inches


def write_trace_figures(traces: Traces, folder: Path, *, found: Found) -> tuple[list[Path], dict[str, bytes]]:
    """Write every figure of traces as SVG and PNG; give the files, and the SVGs by kind."""
    drawings: dict[str, Callable[[], Figure | None]] = {
        "trace": lambda: curve_figure(traces, found),
        "layers": lambda: layer_figure(traces),
        "thresholds": lambda: threshold_figure(traces),
        "shape": lambda: shape_figure(traces),
        "training": lambda: training_figure(traces),
    }
    written, pictures = [], {}
    with style.matplotlib_style():
        for kind, draw in drawings.items():
            figure = draw()
            if figure is None:
                continue
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, for both files
            files = [save_figure(figure, folder / f"{kind}.{suffix}") for suffix in ("svg", "png")]
            written += files
            pictures[kind] = files[0].read_bytes()
    return written, pictures


# --- figures ----------------------------------------------------------------------------------------------------------


def curve_figure(traces: Traces, found: Found = ()) -> Figure:
    """Share near zero against the step by the relative and the absolute definition, with what decay alone would do.

    Change points of the whole model are dashed lines.
    """
    figure = empty_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    for axes, zero in ((left, "relative"), (right, "absolute")):
        for i, (label, trace) in enumerate(traces.items()):
            _draw_shares(axes, label, trace, zero, _colour(i))
        _mark(axes, found)
        axes.set(xlabel="training step", ylabel="share of the prunable weights")
        axes.set_title(_TITLES[zero], fontsize=9)
    _legend_below(figure, left)
    return figure


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Put a legend under the figure in as many columns as its labels leave room for; the figure grows by its lines."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…" for label in labels]
    width, height = figure.get_size_inches()
    columns = max(1, min(4, int(width * LETTERS_PER_INCH) // (max(map(len, labels), default=0) + 6)))
    figure.set_size_inches(width, height + LEGEND_LINE * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _draw_shares(axes: Axes, label: str, trace: SparsityTrace, zero: str, colour: str) -> None:
    lines = {
        label: ("-", trace.share(zero)),
        f"{label}: decay alone": (":", trace.decay_only(zero)),
        f"{label}: exactly 0": ("-.", trace.share("exact")),
    }
    for name, (line, table) in lines.items():
        shares = table["total"].to_numpy(float)
        if np.isfinite(shares).all() and (line != "-." or shares.any()):
            axes.plot(trace.steps, shares, color=colour, lw=1.8 if line == "-" else 1.1, ls=line, label=name)


_TITLES = {"relative": "|w| < 0.05 · RMS at the same step", "absolute": "|w| < 0.05 · σ of the first record"}


def layer_figure(traces: Traces) -> Figure | None:
    """Relative share near zero, step × layer and step × kind, of the first trace."""
    trace = next(iter(traces.values()))
    tables = [trace.share(by=by) for by in ("layer", "kind")]
    tables = [table for table in tables if table.shape[1] > 1]
    if not tables:
        return None
    figure = empty_figure(5.4 * len(tables), 1.6 + 0.26 * max(table.shape[1] for table in tables))
    for axes, table in zip(np.atleast_1d(figure.subplots(1, len(tables))), tables):
        names = [short_kind(str(name)) for name in table.columns]
        _heat(figure, axes, table.to_numpy().T, table.index.to_numpy(), names)
        axes.set(xlabel="training step", ylabel=str(table.columns.name))
    return figure


def threshold_figure(traces: Traces) -> Figure:
    """Share below every multiple of the RMS, less the first record's, against the step: no threshold is chosen."""
    trace = next(iter(traces.values()))
    shares = np.stack([trace.share(multiple=m)["total"].to_numpy() for m in GRID_OF_MULTIPLES])
    figure = empty_figure(6.4, 3.4)
    axes = figure.subplots()
    change = 100 * (shares - shares[:, :1])
    reach = max(float(np.abs(change).max()), 1e-3)
    edges = _edges(trace.steps)
    picture = axes.pcolormesh(edges, np.append(GRID_OF_MULTIPLES, 2.2), change, cmap="RdBu_r", vmin=-reach, vmax=reach)
    axes.set(yscale="log", xlabel="training step", ylabel="threshold / RMS")
    axes.grid(False)
    figure.colorbar(picture, ax=axes, pad=0.02, label="points since the first record")
    return figure


def shape_figure(traces: Traces) -> Figure:
    """Gini coefficient and kurtosis of the weights against the step: free of scale and of threshold."""
    figure = empty_figure(10, 3)
    gini, kurtosis = figure.subplots(1, 2)
    for i, (label, trace) in enumerate(traces.items()):
        gini.plot(trace.steps, trace.gini()["total"], color=_colour(i), label=label)
        kurtosis.plot(trace.steps, trace.kurtosis()["total"], color=_colour(i), label=label)
    gini.axhline(np.sqrt(2) - 1, color=style.MUTED, ls=":", label="Gaussian")
    kurtosis.axhline(3, color=style.MUTED, ls=":", label="Gaussian")
    gini.set(xlabel="training step", ylabel="Gini of |w|")
    kurtosis.set(xlabel="training step", ylabel="kurtosis")
    _legend_below(figure, gini)
    return figure


def training_figure(traces: Traces) -> Figure | None:
    """Training loss and learning rate against the step, where they were recorded."""
    known = {label: trace.progress for label, trace in traces.items() if np.isfinite(trace.progress["loss"]).sum() > 0}
    if not known:
        return None
    figure = empty_figure(10, 3)
    left, right = figure.subplots(1, 2)
    for axes, column, words in ((left, "loss", "training loss"), (right, "lr", "learning rate")):
        for i, (label, table) in enumerate(known.items()):
            axes.plot(table.index, table[column], color=_colour(i), label=label)
        axes.set(xlabel="training step", ylabel=words)
    _legend_below(figure, left)
    return figure


def _colour(index: int) -> str:
    return style.CURVE if index == 0 else style.control_colour(index - 1)


def _mark(axes: Axes, found: Found) -> None:
    """Draw the change point of the whole model, and its word."""
    for entry in found[:1]:
        if entry["step"] is not None and entry["status"] not in ("none", "too_few"):
            axes.axvline(
                entry["step"], color=style.POINT, ls="--", lw=1.2, label=f"{entry['status']} at {entry['step']:,}"
            )


def _heat(figure: Figure, axes: Axes, grid: np.ndarray, steps: np.ndarray, names: Sequence[str]) -> None:
    colours = LinearSegmentedColormap.from_list("heat", [(at, colour) for at, colour in style.HEAT])
    picture = axes.pcolormesh(_edges(steps), np.arange(len(names) + 1), grid, cmap=colours)
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.invert_yaxis()
    axes.grid(False)
    figure.colorbar(picture, ax=axes, pad=0.02)


def _edges(steps: np.ndarray) -> np.ndarray:
    """Borders between records: half-way, and as far beyond the ends."""
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])


# --- page -------------------------------------------------------------------------------------------------------------


def pictures_html(pictures: Mapping[str, bytes]) -> str:
    """Put SVGs into a page, self-contained."""
    encoded = {kind: base64.b64encode(data).decode() for kind, data in pictures.items()}
    return "".join(
        f'<p><img style="max-width:100%" alt="{kind}" src="data:image/svg+xml;base64,{text}"></p>'
        for kind, text in encoded.items()
    )


def _page(
    traces: Traces, pictures: Mapping[str, bytes], found: Found, checkpoints: Sequence[Mapping[str, Any]], command: str
) -> str:
    title = next(iter(traces))
    trace = traces[title]
    about = (
        f"{len(trace.steps)} records, steps {trace.steps[0]:,} to {trace.steps[-1]:,}, {len(trace.weights)} matrices"
    )
    lead = escape(str(found[0]["sentence"])) if found else ""
    left_out = [[each["name"], each["status"], each["reason"]] for each in checkpoints if each["status"] != "measured"]
    missing = (
        f"<section><h2>Left out</h2>{html_table(['checkpoint', '', 'why'], left_out)}</section>" if left_out else ""
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<style>{style.CSS}</style></head>\n<body><main><h1>{escape(title)}</h1><p class=sub>{about}</p>"
        f"<section><p class=lead>{lead}</p>{pictures_html(pictures)}</section>{missing}"
        f"<section><h2>Change points</h2>{html_table(*_found_rows(found))}</section>"
        f"<section><h2>Records</h2>{html_table(*_record_rows(trace))}</section>"
        f"<section><h2>How it is measured</h2><p>{escape(METHOD)}</p><pre>{escape(command)}</pre></section>"
        "</main></body></html>\n"
    )


def _found_rows(found: Found) -> tuple[list[str], list[list[str]]]:
    header = ["series", "status", "step", "excess, points", "of the range", "p", "ramp, records", "schedule changes at"]
    lines = []
    for each in found:
        several = f", {len(each['multiples'])} thresholds" if len(each["multiples"]) > 1 else ""
        numbers = [
            "–" if each[key] is None else f"{scale * each[key]:{form}}"
            for key, scale, form in (
                ("step", 1, ","), ("excess", 100, ".3f"), ("excess_share", 1, ".2f"), ("p", 1, ".3f"),
                ("ramp_records", 1, ".1f"),
            )
        ]  # fmt: skip
        bends = ", ".join(f"{step:,}" for step in each["schedule_changes"][:6])
        lines.append([f"{each['by']}{several}", each["status"], *numbers, bends])
    return header, lines


def _record_rows(trace: SparsityTrace) -> tuple[list[str], list[list[str]]]:
    """A line per record, at most about 60 of them."""
    columns = {
        "relative": trace.share()["total"],
        "absolute": trace.share("absolute")["total"],
        "exact": trace.share("exact")["total"],
        "Gini": trace.gini()["total"],
        "kurtosis": trace.kurtosis()["total"],
        **{name: trace.progress[name] for name in ("loss", "lr", "decay_factor")},
    }
    table = pd.DataFrame(columns).iloc[:: max(1, len(trace.steps) // 60)]
    lines = [
        [f"{step:,}", *("–" if np.isnan(value) else f"{value:.5g}" for value in row)]
        for step, row in zip(table.index, table.to_numpy(float))
    ]
    return ["step", *columns], lines


METHOD = (
    "A weight is near zero when its magnitude is below 0.05 times the RMS of its matrix at the same step (a Gaussian "
    "has 3.99 % there). The absolute share compares with the RMS of the first record instead: weight decay alone "
    "raises it, and the dotted line says how far. Counts are exact at the edges of bins 1.6 % apart and interpolated "
    "between. A rise is abrupt where three increments exceed the faster of their two neighbourhoods by at least 10 % "
    "of the trace's range, less what the running median of the increments does by itself, with p ≤ 0.01 by a moving- "
    "block bootstrap; one p for all layers or thresholds. It is called schedule where the learning rate bends within "
    "three records or its pace explains the rise, and shrinkage where only the absolute share jumps. One run is one "
    "run: what is said of a setting needs three pre-training seeds."
)
