"""What `--help` shows: questions and the command that answers each; for a command, its keys and choices."""

import re
from collections.abc import Iterator, Mapping

from essential_sparsity.apps import CONF
from essential_sparsity.apps.completion import choices, groups

QUESTIONS = (
    ("Which share of my model is free?", (
        ("evaluate backbone.path=MODEL_FOLDER", "what is prunable, how small its weights are, what to run next"),
        ("evaluate backbone.path=FINE_TUNED data=glue data.subset=sst2", "its curve, with nothing trained"),
        ("train experiment=essential_sparsity_bert_glue data.subset=sst2", "the paper's: prune once, fine-tune each"),
    )),
    ("How does that look, here, in minutes, with nothing to download?", (
        ("train experiment=demo", "the whole main job: pre-train, prune, fine-tune, the page"),
    )),
    ("What would it cost, and can my rows resolve it?", (
        ("train experiment=demo plan=true", "hours, disk, the smallest tolerance; nothing is computed"),
    )),
    ("… on my own data?", (
        ("train data=table data.train=a.csv data.validation=b.csv data.text=question data.label=answer", ""),
    )),
    ("When did the sparsity appear, in pre-training?", (
        ("trace checkpoints=FOLDER", "a series of checkpoints, step by step, and its change point"),
    )),
    ("May I have the pruned checkpoint?", (
        ("prune checkpoint=MODEL_FOLDER out=PRUNED sparsity=0.5", "any size, streamed; loads in plain transformers"),
    )),
    ("Is this machine ready?", (
        ("doctor", "versions, devices, caches, hub, disk: one line each, with the remedy"),
    )),
)  # fmt: skip
"""Question → (what to type after `essential-sparsity`, what it gives)."""

WIDTH = 66


def show(commands: Mapping[str, str]) -> None:
    """Print the questions, then the commands."""
    lines = ["[bold]How much of a pre-trained transformer is essential?[/bold]", ""]
    lines += [r"usage: essential-sparsity COMMAND \[key=value …]", ""]
    for question, answers in QUESTIONS:
        lines.append(f"[bold]{question}[/bold]")
        for typed, gives in answers:
            gap = " " * max(2, WIDTH - len(typed))
            lines.append(f"  [cyan]essential-sparsity {typed}[/cyan]{gap}{gives}".rstrip())
    lines += ["", "[bold]commands[/bold]", *(f"  {name:11}{text}" for name, text in commands.items())]
    lines += ["", "essential-sparsity COMMAND --help shows a command's keys and choices; --cfg job what would run."]
    _print(lines)


def show_command(name: str) -> None:
    """Print what a command does, an example, its keys as its YAML file has them, and the choices of its groups."""
    comments, body = _root(name)
    lines = [f"[bold]{_plain(comments[0])}[/bold]", f"  [cyan]{_plain(comments[1])}[/cyan]", ""]
    lines += ["[bold]keys[/bold] (key=value)", *(f"  {_plain(line)}" for line in body)]
    lines += ["  paths.outputs, paths.data, paths.models: where runs, data sets and models lie", ""]
    own = dict(_groups(name))
    if own:
        lines.append("[bold]choices[/bold] (group=choice; its keys as group.key=value)")
        width = max(map(len, own)) + 2
        lines += [f"  {group:{width}}{', '.join(found)}" for group, found in own.items()]
        lines.append("")
    lines += [
        "[bold]flags[/bold]",
        "  -m             sweep: key=a,b,c runs every one",
        "  --cfg job      the whole configuration that would run, with every key; nothing is computed",
        "  --hydra-help   Hydra's own flags",
    ]
    _print(lines)


def _root(name: str) -> tuple[list[str], list[str]]:
    """Give a root file's first comments and its keys with theirs, without defaults and Hydra's own node."""
    lines = (CONF / f"{name}.yaml").read_text().splitlines()
    comments = [line[2:] for line in lines if line.startswith("# ")]
    starts = [i for i, line in enumerate(lines) if re.match(r"\w", line)]
    body: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        if lines[start].split(":")[0] not in ("defaults", "hydra"):
            body += [line for line in lines[start:end] if line.strip()]
    return comments, body


def _groups(name: str) -> Iterator[tuple[str, list[str]]]:
    """Give the groups that a command's defaults list names, and those within them, with their choices."""
    text = (CONF / f"{name}.yaml").read_text()
    named = [group for group in re.findall(r"^  - (\w+):", text, flags=re.M) if group != "paths"]
    for group in groups():
        if group.partition("/")[0] in named and (found := choices(group)):
            yield group, found


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _print(lines: list[str]) -> None:
    from rich.console import Console

    Console(highlight=False, emoji=False).print("\n".join(lines), soft_wrap=True)
