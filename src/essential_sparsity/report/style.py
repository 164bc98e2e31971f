"""Colours, type and page style: one light theme for static figures, interactive ones and the page."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, MUTED, RULE = "#1d2430", "#66707f", "#d9dee6"
CURVE, CONTROLS = "#1f5fa8", ("#c4661f", "#7a5195", "#3d8b6e", "#8a6d3b")
POINT = "#b3123b"
BAND, NOISE, SPREAD = "#2e9e5b", "#9aa4b2", "#1f5fa8"
TRAFFIC = {"red": "#c62f3a", "amber": "#d08a00", "green": "#2b8a4b"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
HEAT = [[0.0, "#f4f7fb"], [0.25, "#bcd3ec"], [0.5, "#6d9fd0"], [0.75, "#2f68ab"], [1.0, "#12325e"]]

MATPLOTLIB: "dict[RcKeyType, Any]" = {
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "essential_sparsity",  # equal runs give equal files
}


@contextmanager
def matplotlib_style() -> Iterator[None]:
    """Apply the theme to matplotlib while figures are drawn."""
    import matplotlib

    with matplotlib.rc_context(MATPLOTLIB):
        yield


def control_colour(index: int) -> str:
    """Colour of the n-th curve that is drawn beside another."""
    return CONTROLS[index % len(CONTROLS)]


def plotly_layout(**changes: Any) -> dict[str, Any]:
    """Layout that all interactive figures share."""
    axis = {"gridcolor": RULE, "zeroline": False, "linecolor": MUTED, "ticks": "outside", "tickcolor": RULE}
    return {
        "template": "none",
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": FONT, "size": 13, "color": INK},
        "margin": {"l": 64, "r": 24, "t": 48, "b": 52},
        "hoverlabel": {"bgcolor": "white", "font": {"family": FONT, "size": 12}},
        "legend": {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0, "font": {"size": 12}},
        "xaxis": axis,
        "yaxis": axis,
        **changes,
    }


CSS = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f5f7fa; color: {INK}; font: 15px/1.5 {FONT}; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 28px 24px 64px; }}
h1 {{ font-size: 26px; margin: 0 0 4px; }}
h2 {{ font-size: 20px; margin: 0 0 10px; }}
h3 {{ font-size: 13px; letter-spacing: .04em; text-transform: uppercase; color: {MUTED}; margin: 22px 0 8px; }}
p.lead {{ font-size: 18px; line-height: 1.45; margin: 0 0 14px; max-width: 62em; }}
p.sub, .note {{ color: {MUTED}; margin: 0 0 18px; }}
section {{ background: white; border: 1px solid {RULE}; border-radius: 10px; padding: 22px 24px; margin: 20px 0; }}
.columns {{ display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 8px 28px; }}
.columns > * {{ min-width: 0; }}
@media (max-width: 860px) {{ .columns {{ grid-template-columns: minmax(0, 1fr); }} }}
table {{ border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid {RULE}; vertical-align: top; }}
th {{ color: {MUTED}; font-weight: 600; white-space: nowrap; }}
td.number, th.number {{ text-align: right; white-space: nowrap; }}
tr.chosen td {{ background: #eef4fb; }}
.scroll {{ overflow-x: auto; }}
.dot {{ display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 8px; }}
.badge {{ display: inline-block; padding: 1px 9px; border-radius: 999px; font-size: 12.5px; color: white; }}
ul.checks {{ list-style: none; margin: 0; padding: 0; }}
ul.checks li {{ display: flex; align-items: baseline; padding: 5px 0; border-bottom: 1px solid {RULE}; }}
ul.checks b {{ flex: 0 0 98px; }}
.dot {{ flex: 0 0 11px; }}
code, pre {{ font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
pre {{ background: #f5f7fa; border: 1px solid {RULE}; border-radius: 6px; padding: 10px 12px; overflow-x: auto; }}
details summary {{ cursor: pointer; color: {CURVE}; margin: 8px 0; }}
nav a {{ margin-right: 16px; color: {CURVE}; text-decoration: none; }}
"""
