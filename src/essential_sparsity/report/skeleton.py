"""What every page has: its policy, styles, skip link, bar, script, and data that the script unpacks."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from essential_sparsity.report import style
from essential_sparsity.runs import atomic_path

ASSETS = Path(__file__).parent / "assets"

Plot = dict[str, Any]

NO_SCRIPT = "This figure is drawn by the page's own script; the folder figures/ has it as a picture."

INDEX = "index.html"


def write_page(
    path: Path,
    title: str,
    body: str,
    *,
    plots: Mapping[str, Plot] | None = None,
    runs: Mapping[str, Any] | None = None,
    is_index: bool = False,
) -> None:
    """Write a self-contained page: `body` in a skeleton, the `plots` that it has boxes for, the files that it names.

    `runs` are the lines of its table of all runs. Nothing is fetched: its policy allows this script, plotly.js and no
    network. A link leads to the index of all experiments where there is one.
    """
    scripts = [page_script()]
    islands = ""
    if plots or runs:
        content = {"plots": plots or {}, "runs": runs}
        islands += _island("plots", json.dumps(content, allow_nan=False, separators=(",", ":")))
    if plots:
        scripts.append(plotly_script())
        islands += f'<script type="text/plain" id="island-plotly">{_packed_plotly()}</script>'
    if files := _named_files(body, path.parent):
        islands += _island("files", json.dumps(files))
    has_index = not is_index and path.parent.name and (path.parent.parent.parent / INDEX).is_file()
    back = f'<a href="{Path("../..", INDEX)}">← All experiments</a>' if has_index else ""
    with atomic_path(path) as temporary:
        temporary.write_text(_whole(title, body, back, islands, scripts), encoding="utf-8")


def _whole(title: str, body: str, back: str, islands: str, scripts: Sequence[str]) -> str:
    policy = f"default-src 'none'; script-src {_hashes(tuple(scripts))}; style-src 'unsafe-inline'; img-src data: blob:"
    colours = json.dumps(style.DARK)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style.css_colours()}{_asset('page.css')}</style></head>\n<body>"
        f'<a class=skip href="#content">Skip to the content</a>'
        f"<header class=bar>{back}<button type=button id=theme aria-pressed=false>Dark</button></header>"
        f'<main id=content tabindex=-1>{body}</main>\n<script type="application/json" id=colours>{colours}</script>'
        f"{islands}<script>{scripts[0]}</script></body></html>\n"
    )


def page_script() -> str:
    """The script that all pages have in common."""
    return _asset("page.js")


@cache
def plotly_script() -> str:
    """plotly.js, whole: the package has no smaller bundle."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


@cache
def _packed_plotly() -> str:
    return _packed(plotly_script())


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _hashes(scripts: tuple[str, ...]) -> str:
    """The policy's words for these scripts and no other: whatever a name on a page holds, it cannot run."""
    digests = (hashlib.sha256(text.encode()).digest() for text in scripts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _island(name: str, text: str) -> str:
    """Text as gzip in base64, a fifth of its size: no name in it can end the element that holds it."""
    return f'<script type="text/plain" id="island-{name}">{_packed(text)}</script>'


def _named_files(body: str, folder: Path) -> dict[str, str]:
    """The files beside the page that its buttons save: tables as LaTeX, and both widths of static figures."""
    found = {}
    for name in dict.fromkeys(re.findall(r'data-file="([^"]+)"', body)):
        several = [name] if name.endswith(".tex") else [f"{place}/{name}.svg" for place in FIGURE_FOLDERS]
        found |= {each: (folder / each).read_text(encoding="utf-8") for each in several}
    return found


FIGURE_FOLDERS = ("figures", "figures_one_column")


def plot_box(name: str, plots: dict[str, Plot], plot: Plot, *, out: Path, figure: str = "") -> str:
    """Add an interactive figure to `plots` and give its place in the page.

    `figure` is the static one under `out/figures` that is saved from here, where it was written.
    """
    layout = dict(plot["layout"])
    title = (layout.pop("title", None) or {}).get("text", name)
    shown = [trace for trace in plot["data"] if trace.get("showlegend", True)]
    layout["meta"] = {"entries": len(shown)}
    plots[name] = {**plot, "layout": layout}
    files = f' data-file="{escape(figure)}"' if figure and (out / FIGURE_FOLDERS[0] / f"{figure}.svg").is_file() else ""
    height = layout.get("height", 450)
    return (
        f'<figure aria-label="{escape(title)}"><figcaption class=note>{escape(title)}</figcaption>'
        f'<div class=plot id="{name}" role=img aria-label="{escape(title)}" style="--height:{height}px"'
        f' data-name="{escape(figure or name)}"{files}><p class=note>{NO_SCRIPT}</p></div></figure>'
    )


def facets_of(**facets: str | Sequence[str] | None) -> str:
    """Attribute that the filters look at: what this section, card or row is about, one value or several of a facet."""
    known = {key: value for key, value in facets.items() if value}
    return f' data-facets="{escape(json.dumps(known))}"' if known else ""


def filters(facets: Mapping[str, Sequence[str]]) -> str:
    """A choice for every facet that has more than one value; empty where none has."""
    choices = ""
    for key, values in facets.items():
        several = list(dict.fromkeys(value for value in values if value))
        if len(several) > 1:
            options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in several)
            every = f'<option value="">all</option>{options}'
            choices += f'<label>{escape(key)}<select name="{escape(key)}">{every}</select></label>'
    told = "<output id=matches class=note aria-live=polite></output>"
    return f'<form class=filters aria-label="Show only" hidden>{choices}{told}</form>' if choices else ""
