"""The benchmark page: its tables are rewritten from the files in outputs/bench, its text is written by hand."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.figure import HEAD, Figure

PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- figures: begin (python -m tests.bench --page) -->", "<!-- figures: end -->"


def rewrite(folder: Path, names: Sequence[str], page: Path = PAGE) -> int:
    """Put the tables of all files that are there between the page's two markers; exit code 2 where there is none."""
    files = [folder / f"{name}.json" for name in names if (folder / f"{name}.json").is_file()]
    if not files:
        print(f"{folder} has no figures: run python -m tests.bench first", file=sys.stderr)
        return 2
    before, _, rest = page.read_text().partition(BEGIN)
    there, _, after = rest.partition(END)
    tables = merged(there, section([json.loads(file.read_text()) for file in files]), names)
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")
    print(f"{page.name}: {', '.join(file.stem for file in files)}")
    return 0


def merged(there: str, measured: str, names: Sequence[str]) -> str:
    """Put what was measured here in the place of its like; what was measured elsewhere and is not here stays."""
    (machines, blocks), (new_machines, new_blocks) = _blocks(there), _blocks(measured)
    blocks |= new_blocks
    ordered = [blocks[name] for name in names if name in blocks]
    heads = dict.fromkeys([*machines, *new_machines])
    return "\n\n".join([*heads, *ordered]) + "\n"


def _blocks(text: str) -> tuple[list[str], dict[str, str]]:
    """Give the machines, each with its versions, and the tables with their headings by name."""
    head, *blocks = text.split("### ")
    machines = [f"Machine: {each.strip()}" for each in head.split("Machine: ")[1:]]
    return machines, {block.splitlines()[0].strip(): f"### {block.strip()}" for block in blocks}


def section(contents: Sequence[dict[str, Any]]) -> str:
    """Give the machines and versions in use once, then one table per benchmark with its command."""
    lines = []
    for machine, versions in _distinct(contents):
        lines += [f"Machine: {_machine(machine)}.", ""]
        lines += [f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}.", ""]
    for content in contents:
        lines += [f"### {content['name']}", "", f"`{content['command']}`: {_circumstances(content)}.", ""]
        lines += _table([Figure.from_dict(figure) for figure in content["figures"]])
        lines.append("")
    return "\n".join(lines)


def _distinct(contents: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    found: list[tuple[dict[str, Any], dict[str, str]]] = []
    for content in contents:
        pair = (content["machine"], content["versions"])
        if pair not in found:
            found.append(pair)
    return found


def _machine(machine: dict[str, Any]) -> str:
    parts = [machine["system"], machine["processor"], machine["vector_instructions"], f"{machine['cores']} cores"]
    parts += [f"{machine['memory_gib']} GiB", f"{machine['threads']} threads"]
    parts += [f"OMP_WAIT_POLICY={machine['omp_wait_policy']}", machine["accelerator"] or "no accelerator"]
    return ", ".join(parts)


def _circumstances(content: dict[str, Any]) -> str:
    revision = f"revision {content['git']}, " if content["git"] else ""
    load = f"load before {content['load_before']}"
    return f"{content['created'][:10]}, {revision}{load}, {content['seconds']:.0f} s in all"


def _table(figures: Sequence[Figure]) -> list[str]:
    rows = [HEAD, ("---", "---:", "---:", "---:", "---:", "---", "---"), *(figure.cells() for figure in figures)]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    notes = dict.fromkeys(f"{figure.what}: {figure.note}." for figure in figures if figure.note)
    return [*lines, *(["", *notes] if notes else [])]
