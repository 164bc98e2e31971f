"""The page: one self-contained HTML file that opens from disk and asks no network for anything."""

import json
from collections.abc import Mapping, Sequence
from html import escape

from essential_sparsity.report import interactive, style, tables
from essential_sparsity.report.panels import Panel, percent, points, sentence
from essential_sparsity.report.validity import Check, validity, worst
from essential_sparsity.runs import RunRecord

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

DRAW = """
for (const [id, plot] of Object.entries(plots)) {
  Plotly.newPlot(id, plot.data, plot.layout, {responsive: true, displaylogo: false, displayModeBar: 'hover',
    showTips: false, modeBarButtonsToRemove: ['lasso2d', 'select2d', 'autoScale2d']});
}
"""


def page(
    title: str,
    panels: Sequence[Panel],
    records: Sequence[RunRecord],
    *,
    name: str,
    traces: str = "",
    arms: tuple[str, str] = ("", ""),
    plots: Mapping[str, interactive.Plot] | None = None,
) -> str:
    """Whole HTML of a report, plotly.js inline; every name from a run is escaped.

    `traces` is a section of its own, `arms` those before and after the curves, `plots` what they ask to be drawn.
    """
    plots = dict(plots or {})
    versions = _versions(records)
    body = [_head(title, panels, records), arms[0]]
    sections = []
    for index, panel in enumerate(panels):
        draw = _dense_section if panel.is_dense_only else _section
        sections.append(draw(panel, index, plots, num_versions=len(versions)))
    only_dense = all(panel.is_dense_only for panel in panels)
    body += [traces, *sections, arms[1]] if only_dense else [*sections, arms[1], traces]
    body += [_overview(panels), _missing(records, panels), _reproduce(records, versions, name), _method(panels)]
    script = ""
    if plots:
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>\n<script>const plots = {_json(plots)};{DRAW}</script>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style.CSS}</style></head>\n<body><main>{''.join(body)}</main>\n{script}</body></html>\n"
    )


def _json(plots: dict[str, interactive.Plot]) -> str:
    inner = ",".join(f"{json.dumps(name)}:{interactive.to_script(plot)}" for name, plot in plots.items())
    return "{" + inner + "}"


def _head(title: str, panels: Sequence[Panel], records: Sequence[RunRecord]) -> str:
    finished = sum(record.finished for record in records)
    failed = sum(record.failure is not None for record in records)
    counts = [f"{finished} of {len(records)} runs finished"] + ([f"{failed} failed"] if failed else [])
    lead = "" if panels else "<p class=lead>No run has finished: there is no curve to show yet.</p>"
    links = "".join(f'<a href="#panel-{i}">{escape(_name(panel))}</a>' for i, panel in enumerate(panels))
    nav = f"<nav>{links}</nav>" if len(panels) > 1 else ""
    return f"<h1>{escape(title)}</h1><p class=sub>{', '.join(counts)}</p>{lead}{nav}"


def _name(panel: Panel) -> str:
    return f"{panel.title} · {panel.curve.label}" + ("" if panel.curve.is_primary else f" · {panel.curve.split}")


def _section(panel: Panel, index: int, plots: dict[str, interactive.Plot], *, num_versions: int) -> str:
    checks = validity(panel, num_versions=num_versions)
    header, lines, chosen = tables.level_rows(panel)
    drawn = {
        "curve": interactive.curve_plot(panel),
        "loss": interactive.loss_plot(panel) if panel.result.levels else None,
        "layers": interactive.layer_plot(panel),
        "sensitivity": interactive.sensitivity_plot(panel),
        "training": interactive.training_plot(panel),
    }
    boxes = {}
    for kind, plot in drawn.items():
        if plot is not None:
            plots[f"{kind}-{index}"] = plot
            boxes[kind] = f'<div id="{kind}-{index}"></div>'
    get = boxes.get
    return (
        f'<section id="panel-{index}"><h2>{escape(_name(panel))} {_badge(panel, checks)}</h2>'
        f"<p class=lead>{escape(sentence(panel))}</p>"
        f"{get('curve', '')}"
        f"<div class=columns><div><h3>Validity</h3>{_checks(checks)}{_notes(panel)}</div>"
        f"<div><h3>What is counted</h3>{_denominator(panel)}{_excess(panel)}</div></div>"
        f"<div class=columns>{get('loss', '')}{get('sensitivity', '')}</div>"
        f"{get('layers', '')}{get('training', '')}"
        f"<h3>Levels</h3>{tables.html_table(header, lines, chosen=chosen)}{_equalities(panel)}</section>"
    )


def _dense_section(panel: Panel, index: int, plots: dict[str, interactive.Plot], *, num_versions: int) -> str:
    """Runs that nobody pruned: their values, and nothing about a curve that there is not."""
    runs = panel.curve.points.sort_values("seed")
    lines = [[f"{seed}", f"{value:.4f}", run] for seed, value, run in runs[["seed", "value", "run"]].to_numpy()]
    return (
        f'<section id="panel-{index}"><h2>{escape(_name(panel))}</h2><p class=lead>{escape(sentence(panel))}</p>'
        f"{tables.html_table(['seed', panel.curve.metric, 'run'], lines)}{_notes(panel)}</section>"
    )


def _badge(panel: Panel, checks: Sequence[Check]) -> str:
    status = panel.result.status.replace("_", " ")
    return f'<span class=badge style="background:{style.TRAFFIC[worst(checks)]}">{escape(status)}</span>'


def _checks(checks: Sequence[Check]) -> str:
    lines = "".join(
        f'<li><span class=dot style="background:{style.TRAFFIC[check.colour]}" title="{check.colour}"></span>'
        f"<b>{escape(check.name)}</b><span>{escape(check.text)}</span></li>"
        for check in checks
    )
    return f"<ul class=checks>{lines}</ul>"


def _notes(panel: Panel) -> str:
    return "".join(f"<p class=note>{escape(note)}</p>" for note in panel.result.notes)


def _denominator(panel: Panel) -> str:
    """Sparsity of the prunable weights and share of all parameters; what does not get faster or smaller."""
    result, runs = panel.result, panel.curve.points
    lines = []
    counted = runs.dropna(subset=["num_prunable"]) if "num_prunable" in runs else runs.iloc[:0]
    if len(counted):
        prunable = int(counted["num_prunable"].iloc[0])
        lines.append(f"{prunable:,} prunable weights: the linear matrices inside the blocks")
        total = counted["num_parameters"].iloc[0]
        if total == total and total:  # NaN where a run does not say
            lines[-1] += f", {percent(prunable / total)} of all {int(total):,} parameters"
            at = result.essential_sparsity
            if at is not None:
                share = percent(at * prunable / total)
                lines.append(f"{percent(at, digits=2)} of the prunable weights is {share} of all parameters")
    if result.next_sparsity is not None and result.loss_at_next is not None:
        loss = points(result, result.loss_at_next)
        lines.append(f"the next level of the definition, {result.next_sparsity:.3f} (ρ = {result.rho:g}), costs {loss}")
    if result.turn_width is not None:
        lines.append(
            f"from {points(result)} to {points(result, 5 * result.epsilon)}: {result.turn_width:.3g} of sparsity"
        )
    lines.append("zeros are stored as zeros: no speed or disk is gained unless a sparse format or kernel uses them")
    recipes = {line["sparsity"]: line["recipe"] for line in result.levels if line["recipe"]}
    if recipes:
        chosen = "; ".join(f"{level:g}: {recipe}" for level, recipe in recipes.items())
        lines.append(f"the best recipe of each level, chosen on the other half of the evaluation rows: {chosen}")
    else:
        lines.append("one recipe for all levels (fixed recipe): the final training loss is shown per level")
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _excess(panel: Panel) -> str:
    header, lines = tables.excess_rows(panel)
    return f"<h3>More than the controls</h3>{tables.html_table(header, lines)}" if lines else ""


def _equalities(panel: Panel) -> str:
    if not panel.equalities:
        return ""
    header, lines = tables.equality_rows(panel)
    said = "".join(f"<li>{escape(each.sentence())}</li>" for each in panel.equalities)
    return f"<h3>Equal to the other pruners?</h3><ul>{said}</ul>{tables.html_table(header, lines)}"


def _overview(panels: Sequence[Panel]) -> str:
    if not panels:
        return ""
    header, lines = tables.result_rows(panels)
    return f"<section><h2>All curves</h2>{tables.html_table(header, lines)}</section>"


def _missing(records: Sequence[RunRecord], panels: Sequence[Panel]) -> str:
    header, lines = tables.missing_rows(records, panels)
    if not lines:
        return ""
    intro = "<p class=note>Only seeds that have every level of a curve enter its estimate; the others are drawn.</p>"
    return f"<section><h2>Missing runs</h2>{intro}{tables.html_table(header, lines)}</section>"


def _versions(records: Sequence[RunRecord]) -> list[tuple[str, int]]:
    """Distinct code and library versions of the runs, most used first."""
    counts: dict[str, int] = {}
    for record in records:
        parts = {"git": record.info.get("git"), **(record.info.get("versions") or {})}
        text = ", ".join(f"{key} {value}" for key, value in parts.items() if value)
        counts[text or "not recorded"] = counts.get(text or "not recorded", 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def _reproduce(records: Sequence[RunRecord], versions: Sequence[tuple[str, int]], name: str) -> str:
    commands = list(dict.fromkeys(str(record.info["command"]) for record in records if record.info.get("command")))
    shown = [_sweep_command(commands), f"essential-sparsity report name={name}"]
    each = (
        f"<details><summary>{len(commands)} single runs</summary><pre>{escape(chr(10).join(commands))}</pre></details>"
    )
    machines = dict.fromkeys(_machine(record) for record in records)
    inputs = dict.fromkeys(pair for record in records for pair in (record.info.get("inputs") or {}).items())
    several = "" if len(versions) < 2 else f"<p class=note>{len(versions)} versions made these runs:</p>"
    lines = [[text, count] for text, count in versions]
    hashes = tables.html_table(["input", "sha256"], [[key, value] for key, value in inputs])
    return (
        f"<section><h2>Reproduce</h2><pre>{escape(chr(10).join(filter(None, shown)))}</pre>{each}{several}"
        f"{tables.html_table(['versions', 'runs'], lines)}<p class=note>{escape('; '.join(machines))}</p>"
        + (f"<details><summary>{len(inputs)} inputs</summary>{hashes}</details>" if inputs else "")
        + "</section>"
    )


def _sweep_command(commands: Sequence[str]) -> str:
    """What all runs' commands share, in order: the sweep without its points; empty where no experiment names it."""
    shared = [word for word in (commands or [""])[0].split() if all(word in other.split() for other in commands)]
    named = len(commands) == 1 or any(word.startswith("experiment=") for word in shared)
    return " ".join(shared) if named else ""


def _machine(record: RunRecord) -> str:
    """Where a run was made: system, processor, cores, threads."""
    machine = record.info.get("machine") or {}
    parts = [f"{key} {value}" for key, value in machine.items()] if isinstance(machine, dict) else [str(machine)]
    return ", ".join([*parts, f"threads {record.info.get('num_threads')}"])


def _method(panels: Sequence[Panel]) -> str:
    if not panels:
        return ""
    result = panels[0].result
    text = (
        "Essential sparsity is the largest share of zeros up to which the metric stays within ε of the dense run, "
        f"ε = {points(result)} here. Dense and pruned runs of one seed share their head and the order of their rows "
        "and are compared on the same rows. The estimate is the first crossing of −ε by the falling "
        "least-squares fit of the mean difference; its interval is a bootstrap over seeds, then rows, whose ends move "
        "outward to the levels that were run. Free: every level up to there has a one-sided "
        f"{100 * result.confidence:g} % lower bound above −ε; costly: every level from there has its upper one below. "
        "The grey band is what another seed alone changes between dense runs."
    )
    if any(panel.equalities for panel in panels):
        text += (
            " Two pruners are called equal at a level where both one-sided 95 % bounds of their difference lie within "
            "±ε, different where the two-sided interval leaves out 0; otherwise neither is shown."
        )
    return f"<section><h2>How it is measured</h2><p>{escape(text)}</p></section>"
