"""README's table of experiments, from conf/experiment: `python -m tests.readme_table` writes it, a test checks it.

Question, command and hours are each file's first comment lines; the number of runs is that of its sweep. The order is
README's own: what is new comes last.
"""

import re
from pathlib import Path

from tests.apps.sweep_points import app_of, composed, points

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- experiments: python -m tests.readme_table -->", "<!-- end of experiments -->"
HEADER = "| experiment | question | cost | command |\n|---|---|---|---|"


def natural(name: str) -> list[str | int]:
    """Give a key that sorts figure_2 before figure_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def parts(readme: str) -> tuple[str, str, str]:
    """Give README before the table, the table, and README after it."""
    before, rest = readme.split(BEGIN)
    table, after = rest.split(END)
    return before, table.strip(), after


def table(old: str) -> str:
    """Give the table, its rows in the order of the old one."""
    names = sorted((path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")), key=natural)
    order = re.findall(r"^\| `(\w+)` \|", old, flags=re.M)
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    return "\n".join([HEADER, *map(row, names)])


def row(name: str) -> str:
    """Give one experiment's line."""
    text = (ROOT / "conf/experiment" / f"{name}.yaml").read_text()
    question, command, *more = re.findall(r"^# (?!@)(.+)$", text, flags=re.M)
    hours = [line.removeprefix("Cost: ").rstrip(".") for line in more if line.startswith("Cost: ")]
    return f"| `{name}` | {question} | {'; '.join([size(name), *hours])} | `{command}` |"


def size(name: str) -> str:
    """Say how many runs an experiment has, pre-trainings and rounds aside."""
    if app_of(name) == "evaluate":
        config = composed(name)
        if config.get("models"):
            return "no training: weights are read"
        return f"{len(points(name)) * len(config.sparsities)} evaluations, no training"
    number = len(points(name))
    return f"{number:,} run{'' if number == 1 else 's'}"


def main() -> None:
    """Write README's table."""
    path = ROOT / "README.md"
    before, old, after = parts(path.read_text())
    path.write_text(f"{before}{BEGIN}\n{table(old)}\n{END}{after}")


if __name__ == "__main__":
    main()
