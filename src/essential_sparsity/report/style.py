"""Colours, type and widths: one theme for static figures, interactive ones and the page, light and dark."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, MUTED, RULE = "#1d2430", "#5d6776", "#d9dee6"
PAPER, GROUND, CHOSEN = "#ffffff", "#f5f7fa", "#eef4fb"
CURVE, CONTROLS = "#1f5fa8", ("#c4661f", "#7a5195", "#3d8b6e", "#8a6d3b")
POINT = "#b3123b"
BAND, NOISE, SPREAD = "#2e9e5b", "#9aa4b2", "#1f5fa8"
TRAFFIC = {"red": "#c62f3a", "amber": "#946200", "green": "#1f7a3f"}
HEAT = [[0.0, "#f4f7fb"], [0.25, "#bcd3ec"], [0.5, "#6d9fd0"], [0.75, "#2f68ab"], [1.0, "#12325e"]]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

DARK = {
    INK: "#e6eaf0", MUTED: "#a3adbb", RULE: "#303947", PAPER: "#171c24", GROUND: "#0f131a", CHOSEN: "#1e2b3c",
    CURVE: "#6aa9f0", POINT: "#ff6b8b", BAND: "#3fbf75", NOISE: "#7c8797",
    **dict(zip(CONTROLS, ("#f0914a", "#c08be0", "#5cc39b", "#cfa75f"))),
    **dict(zip((colour for _, colour in HEAT), ("#1d2633", "#264870", "#3f78b5", "#7fb0e6", "#dcecff"))),
}  # fmt: skip
"""What each colour of the page and of its interactive figures becomes in the dark."""

NAMED = {"ink": INK, "muted": MUTED, "rule": RULE, "paper": PAPER, "ground": GROUND, "chosen": CHOSEN, "link": CURVE}
"""Colours that assets/page.css knows by name."""

ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75
"""Widths in inches of a figure in a paper of two columns."""

DOTS_PER_INCH = 300

MATPLOTLIB: "dict[RcKeyType, Any]" = {
    # STIX is drawn after Times, in which most such papers are set; matplotlib brings it, and the other for its gaps
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "essential_sparsity",  # equal runs give equal files
}


@contextmanager
def matplotlib_style(*, width: float = TWO_COLUMNS) -> Iterator[None]:
    """Apply the theme to matplotlib while figures are drawn, none of them wider than `width` inches."""
    import matplotlib

    with matplotlib.rc_context({**MATPLOTLIB, "figure.figsize": (width, width)}):
        yield


def available_width() -> float:
    """Inches that a figure may be wide: what the style in force says."""
    import matplotlib

    return float(matplotlib.rcParams["figure.figsize"][0])


def control_colour(index: int) -> str:
    """Colour of the n-th curve that is drawn beside another."""
    return CONTROLS[index % len(CONTROLS)]


def plotly_layout(**changes: Any) -> dict[str, Any]:
    """Layout that all interactive figures share."""
    axis = {"gridcolor": RULE, "zeroline": False, "linecolor": MUTED, "ticks": "outside", "tickcolor": RULE}
    return {
        "template": "none",
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": FONT, "size": 13, "color": INK},
        "margin": {"l": 64, "r": 24, "t": 48, "b": 52},
        "hoverlabel": {"bgcolor": PAPER, "font": {"family": FONT, "size": 12}, "align": "left"},
        "legend": {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0, "font": {"size": 12}},
        "xaxis": axis,
        "yaxis": axis,
        **changes,
    }


def css_colours() -> str:
    """The page's colours as CSS variables: light, dark as the reader's system says, and either by the page's button."""
    light = "".join(f"--{name}:{colour};" for name, colour in NAMED.items())
    dark = "".join(f"--{name}:{DARK[colour]};" for name, colour in NAMED.items())
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
    )
