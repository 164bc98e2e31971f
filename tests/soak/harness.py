"""Disturb a sweep until so many faults have hit it, start the same commands again, compare with the undisturbed one."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak import faults, outcome, sweep

ROOT = Path(__file__).resolve().parents[2]

LONGEST = 600.0
"""Seconds after which a start counts as hung."""

MOST_STARTS = 6
"""Undisturbed starts that a command may take to end after its faults; one is what it should take."""

Start = Callable[[Sequence[str], Path, dict[str, Any]], dict[str, Any]]


@contextlib.contextmanager
def starter(*, pages: bool = True) -> Iterator[Start]:
    """Give a function that starts a command in a folder under a fault and says how it ended (code, seconds, output)."""
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.soak.forks", *([] if pages else ["--without-pages"])]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
    )
    assert process.stdin is not None and process.stdout is not None
    inwards, outwards = process.stdin, process.stdout
    assert outwards.readline() == "ready\n", "the process that forks did not import"

    def start(words: Sequence[str], folder: Path, fault: dict[str, Any]) -> dict[str, Any]:
        asked = {"words": list(words), "folder": str(folder), "fault": fault, "limit": LONGEST}
        print(json.dumps(asked), file=inwards, flush=True)
        return json.loads(outwards.readline())

    try:
        yield start
    finally:
        inwards.close()
        process.wait(timeout=30)
        outwards.close()


@dataclass
class Account:
    """What became of every fault, and what the sweeps left in the end."""

    num_points: int = 0
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)  # (fault, how the start ended)
    faults_of: Counter[str] = field(default_factory=Counter)  # by command
    wrong: list[str] = field(default_factory=list)
    again: int = 0  # starts without a fault that did not end well at once

    @property
    def num_faults(self) -> int:
        """How many faults hit."""
        return sum(self.hits.values())


class Soak:
    """One undisturbed and one disturbed copy of the same sweep, in two folders."""

    def __init__(self, start: Start, folder: Path, chance: random.Random, account: Account) -> None:
        self.start, self.chance, self.account = start, chance, account
        self.calm, self.rough = folder / "calm", folder / "rough"
        self.cut: set[str] = set()  # runs of which a file was cut short since they were last seen whole
        self.finished: dict[str, bytes] = {}

    def round(self, commands: Sequence[list[str]], num_faults: dict[str, int], kinds: Sequence[str]) -> None:
        """Run all commands undisturbed in one folder, disturbed in the other, and account for what differs."""
        for words in commands:
            seconds = self._calm(words)
            self._disturb(words, num_faults[words[0]], kinds, seconds)
        left = outcome.left(self.calm / "outputs"), outcome.left(self.rough / "outputs")
        self.account.num_points += sum(place.endswith("metrics.json") for place in left[0])
        found = outcome.differences(*left)
        pruned = outcome.differences(outcome.left(self.calm / "pruned"), outcome.left(self.rough / "pruned"))
        for kind, places in [*found.items(), *pruned.items()]:
            self.account.wrong += [f"{kind}: {place}" for place in places]

    def _calm(self, words: Sequence[str]) -> float:
        ended = self.start(words, self.calm, faults.NONE)
        if ended["code"] != 0:
            raise RuntimeError(f"undisturbed, {' '.join(words)} ended with {ended['code']}:\n{ended['output'][-3000:]}")
        return ended["seconds"]

    def _disturb(self, words: Sequence[str], number: int, kinds: Sequence[str], seconds: float) -> None:
        """Hit a command so many times, a bound on the tries, then start it until it ends well."""
        hits = 0
        for _ in range(4 * number):
            if hits >= number:
                break
            kind = self.chance.choice(kinds)
            hits += self._fault(words, faults.drawn(kind, self.chance, seconds=seconds))
        ended: dict[str, Any] = {}
        for starts in range(MOST_STARTS):
            ended = self.start(words, self.rough, faults.NONE)
            self._see(words, ended, faults.NONE["kind"])
            if ended["code"] == 0:
                self.account.again += starts
                return
        last = ended["output"].strip().splitlines()[-1:]
        self.account.wrong.append(f"{words[0]} does not end after {MOST_STARTS} starts: {last}")

    def _fault(self, words: Sequence[str], fault: dict[str, Any]) -> bool:
        """Start once under a fault; say whether it hit."""
        kind = fault["kind"]
        if kind == "cut short":
            cut = faults.cut_short(fault, self.rough / sweep.PLACES[words[0]])
            if cut is None:
                return False
            outputs = self.rough / "outputs"
            self.cut |= {str(parent.relative_to(outputs)) for parent in cut.parents if parent.is_relative_to(outputs)}
        ended = self.start(words, self.rough, fault)
        self._see(words, ended, kind)
        hit = ended["code"] != 0 or kind == "cut short"
        if hit:
            self.account.hits[kind, how(ended)] += 1
            self.account.faults_of[words[0]] += 1
        return hit

    def _see(self, words: Sequence[str], ended: dict[str, Any], kind: str) -> None:
        """Note a start that hung or showed a traceback, and a finished point that was computed again."""
        if ended["code"] is None:
            self.account.wrong.append(f"{kind}: {words[0]} hung")
        if "Traceback" in ended["output"] and kind != "out of memory":
            before, _, behind = ended["output"].partition("Traceback")
            told = " | ".join([*before.strip().splitlines()[-1:], *behind.strip().splitlines()[-3:]])
            self.account.wrong.append(f"{kind}: {words[0]} showed a traceback: {told[:500]}")
        now = outcome.metrics(self.rough / "outputs")
        for place, content in self.finished.items():
            if now.get(place) != content and place not in self.cut:
                self.account.wrong.append(f"{kind}: {place} was finished and computed again")
        self.finished = now
        self.cut -= now.keys() if ended["code"] == 0 else set()


def how(ended: dict[str, Any]) -> str:
    """Say how a start ended, in the words of the table."""
    code, lines = ended["code"], ended["output"].strip().splitlines()
    if code is None:
        return "hung"
    if code < 0:
        return "killed"
    if code == 0:
        return "went on"
    if code == 130:
        return "interrupted, one line"
    if "Traceback" in ended["output"]:
        return "traceback"
    return "one line" if lines and "error:" in lines[-1] else "points failed, table"


def prepare(start: Start, folder: Path) -> None:
    """Make what the sweep reads, in both folders: a model with a head, and a series of three checkpoints of it."""
    import torch
    from safetensors.torch import load_file, save_file

    calm, rough = folder / "calm", folder / "rough"
    calm.mkdir(parents=True)
    for words in sweep.PREPARED:
        ended = start(words, calm, faults.NONE)
        assert ended["code"] == 0, ended["output"][-3000:]
    (model,) = calm.glob("outputs/*/*/model")
    shutil.copytree(model, calm / "kept/model")
    shutil.rmtree(calm / "outputs")
    for step in range(4):
        shutil.copytree(calm / "kept/model", calm / f"series/step_{step}k")
        file = calm / f"series/step_{step}k/model.safetensors"
        with torch.no_grad():
            save_file({name: (1 + step / 10) * value for name, value in load_file(file).items()}, file)
    shutil.copytree(calm, rough)
