"""A zero-shot curve of 20 points in one process, against one process per point: all-MiniLM on SST-2's validation rows.

All times are whole processes, imports included. Peers: our library with one sparsity per process, and a plain script of
transformers and torch.nn.utils.prune with one sparsity per process. The head comes from a few seconds of fine-tuning.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import machine
from tests.bench.figure import Figure
from tests.bench.measure import fresh
from tests.bench.plain_script import zero_shot_point
from tests.bench.sst2 import SKIPPED, Inputs, inputs

LEVELS = tuple(f"{step / 20:g}" for step in range(20))


def run(quick: bool = False) -> Iterator[Figure]:
    """Time the curve and both peers, and compare every value."""
    with tempfile.TemporaryDirectory() as folder:
        found = inputs(f"{folder}/cache")
        if found is None:
            yield Figure("zero-shot curve of 20 points", skipped=SKIPPED)
            return
        yield from _figures(_with_head(found, folder, quick), Path(folder), LEVELS[::10] if quick else LEVELS, quick)


def _figures(found: Inputs, folder: Path, levels: Sequence[str], quick: bool) -> Iterator[Figure]:
    num, once = len(levels), asdict(found)
    fresh(library, **once, folder=f"{folder}/warm", sparsities=levels[:1])  # tokenises, fills the page cache
    curve: list[tuple[Any, float]] = [fresh(library, **once, folder=f"{folder}/curve0", sparsities=levels)]
    points = [fresh(library, **once, folder=f"{folder}/point{s}", sparsities=[s]) for s in levels]
    curve.append(fresh(library, **once, folder=f"{folder}/curve1", sparsities=levels))
    plain = [fresh(zero_shot_point, model=found.model, data=found.data, sparsity=s) for s in levels]
    curve.append(fresh(library, **once, folder=f"{folder}/curve2", sparsities=levels))

    ours, values = median(taken for _, taken in curve), curve[0][0]["values"]
    flops = num * curve[0][0]["flops"]
    limit: dict[str, Any] = {"limit": flops / machine.rates(quick).fp32, "limit_is": "for its matrix products"}
    for name, peer in (("our library", points), ("transformers + torch prune", plain)):
        what = f"curve of {num} points in one process; {name}, one process each"
        yield Figure(what, ours, sum(taken for _, taken in peer), goal="≥ 5", **limit)
    level = median(seconds for answer, _ in curve for seconds in answer["seconds"])
    limit["limit"] /= num
    yield Figure("one more level of the curve: cut, evaluate, write", level, **limit)
    what = f"largest difference of accuracy over {num} points"
    difference = _largest(values, [answer["values"][0] for answer, _ in points])
    yield Figure(f"{what}; our library", difference, unit="", goal="≤ 1e-6", check=True)
    difference = _largest(values, [answer for answer, _ in plain])
    note = "torch keeps either of two equal magnitudes at the cut, ours the earlier one: a row in doubt may flip"
    yield Figure(f"{what}; transformers + torch prune", difference, unit="", goal="≤ 1e-6", note=note)


def _largest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(value - other) for value, other in zip(ours, theirs, strict=True))


def _with_head(found: Inputs, folder: str, quick: bool) -> Inputs:
    """Fine-tune for a few seconds, so that the file has a head; gives the inputs with that model."""
    from essential_sparsity.training import fit
    from tests.bench.sst2 import TASK

    run = Path(folder, "head")
    rows = 64 if quick else 640
    fit(
        found.backbone(), found.glue(rows, 32), TASK, run=run, sparsity="0.0", keep=["model"],
        trainer={"max_epochs": 1, "logger": None},
    )  # fmt: skip
    return Inputs(str(run / "model"), found.data, found.cache)


# --- in a fresh process -----------------------------------------------------------------------------------------------


def library(model: str, data: str, cache: str, folder: str, sparsities: list[str]) -> dict[str, Any]:
    """Evaluate a curve by our library: accuracy and seconds per level, and the operations of one level's matrices."""
    from essential_sparsity.evaluation import evaluate_curve
    from tests.bench.pruning import OMP
    from tests.bench.sst2 import TASK

    found = Inputs(model, data, cache)
    glue = found.glue()
    metrics = evaluate_curve(found.backbone(), glue, TASK, sparsities=sparsities, folder=folder, pruner=OMP)
    tokens = sum(batch["input_ids"].numel() for batch in glue.evaluation_dataloaders()["validation"])
    return {
        "values": [level["value"] for level in metrics],
        "seconds": [level["seconds"] for level in metrics],
        "flops": 2 * metrics[0]["num_prunable"] * tokens,
    }
