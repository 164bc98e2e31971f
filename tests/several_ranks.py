"""Real runs on forked ranks beside runs on one device, all in one process tree: started by test_devices.py.

`python -m tests.several_ranks FOLDER CHECK…` writes FOLDER/CHECK.json. Forked ranks start in no time; those of the app,
processes of their own, are tested there.
"""

import dataclasses
import functools
import json
import os
import secrets
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import numpy as np
import torch
from pytorch_lightning import Callback
from safetensors.torch import load_file

from essential_sparsity.callbacks import PruningCallback, SparsityRecorder
from essential_sparsity.callbacks.pruning import check_ranks
from essential_sparsity.callbacks.whole_batch import MEAN_LOSS, NUM_ROWS, NUM_TOKENS, told
from essential_sparsity.pruning import Masks, Pruner
from essential_sparsity.pruning.shards import held_part
from essential_sparsity.runs import Run, read_run
from essential_sparsity.training import fit, fit_rank
from tests.training_parts import arguments

CHECKS: dict[str, Callable[[Path], Any]] = {}
SIZE = {"vision": 2, "self-supervised": 1}  # epochs


def check(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CHECKS[function.__name__] = function
    return function


class Die(Callback):
    """Ends its rank as SIGKILL would, behind a step, the first time."""

    def __init__(self, rank: int, step: int, folder: Path) -> None:
        self.rank, self.step, self.folder = rank, step, folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        mark = self.folder / "died"
        if trainer.global_rank == self.rank and trainer.global_step == self.step and not mark.exists():
            mark.touch()
            os._exit(9)


class Weigh(Callback):
    """Writes down how many weights lie on each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        num = sum(held_part(weight).numel() for weight in pl_module.parameters())
        (self.folder / f"held{trainer.global_rank}").write_text(str(num))


def fork(number: int, work: Callable[[int], object]) -> None:
    """Do `work(rank)` in forked processes; RuntimeError where one ends badly, the others are killed then."""
    sys.stdout.flush()
    children = []
    for rank in range(number):
        if (child := os.fork()) == 0:
            code = 1
            try:
                torch.set_num_threads(torch.get_num_threads())  # a fork's first two threads race for torch's pool else
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    left, bad = set(children), False
    while left:
        for child in list(left):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                left.discard(child)
                bad |= status != 0
                for other in left if bad else ():
                    os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    if bad:
        raise RuntimeError("a rank ended badly")


def trained(given: dict[str, Any], folder: Path, ranks: int = 1, **changed: Any) -> Run:
    """Train on so many ranks; a run of one has a process of its own, too."""
    given = {**given, "run": folder, "keep": ["model"], **changed}
    trainer = given["trainer"] | {"devices": ranks}

    def launch(run: Run, number: int, keep: Sequence[str]) -> None:
        place = folder / secrets.token_hex(4)
        own = given | {"run": run, "keep": keep, "trainer": trainer, "place": place}
        fork(number, lambda _: fit_rank(**own, record={"config": run.info["config"]}))

    if ranks == 1:
        fork(1, lambda _: fit(**given))
    else:
        fit(**given | {"trainer": trainer}, launch=launch)
    return Run(folder)


def parts(kind: str, rows: int = 337, **trainer: Any) -> dict[str, Any]:
    """Give a run without dropout whose last batch ranks do not divide."""
    given = arguments(kind, Path())
    given["data"] = type(given["data"])(num_train_rows=rows, batch_size=32, augmentation=given["data"].augmentation)
    given["backbone"] = dataclasses.replace(given["backbone"], dropout=0.0)
    if kind == "self-supervised":
        given["task"] = functools.partial(given["task"], drop_path=0.0)
    return given | {"trainer": given["trainer"] | {"max_epochs": SIZE[kind], **trainer}}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(next(run.model.glob("*.safetensors")))


def compared(ours: Run, theirs: Run) -> dict[str, Any]:
    """Say how two runs differ."""
    a, b = weights(ours), weights(theirs)
    rows = [read_run(run.path).predictions().to_pandas() for run in (ours, theirs)]
    masks = [Masks.load(run.path / "masks.safetensors") for run in (ours, theirs)]
    zeros = [name for name, keep in masks[0].items() if a[name][~keep].any() or a[name][~keep].signbit().any()]
    return {
        "names": a.keys() == b.keys(),
        "masks": masks[0].digest() == masks[1].digest(),
        "zeros": not zeros,
        "weights": max(float((a[name] - b[name]).abs().max()) for name in a),
        "equal": all(torch.equal(a[name], b[name]) for name in a),
        "loss": abs(ours.metrics["metrics"]["train/loss"] - theirs.metrics["metrics"]["train/loss"]),
        "steps": [ours.metrics["steps"], theirs.metrics["steps"]],
        "num_images": [ours.metrics["num_images"], theirs.metrics["num_images"]],
        "devices": ours.metrics["num_devices"],
        "rows": rows[0]["row"].tolist() == rows[1]["row"].tolist(),
        "resumed": ours.metrics["resumed"],
        "left": sorted(path.name for path in ours.path.iterdir()),
    }


def traces(ours: Run, theirs: Run) -> dict[str, Any]:
    """Say how two recorded traces differ."""
    import pandas as pd

    counts: list[Any] = [pd.read_parquet(run.path / "trace.parquet") for run in (ours, theirs)]
    moments: list[Any] = [pd.read_parquet(run.path / "moments.parquet") for run in (ours, theirs)]
    first: list[Any] = [frame[frame["step"] == 0].reset_index(drop=True) for frame in counts]
    told: dict[str, Any] = {"start": first[0].equals(first[1])}
    told["totals"] = [frame.groupby("step")["count"].sum().tolist() for frame in counts]
    told["loss"] = float(np.nanmax(np.abs(moments[0]["loss"] - moments[1]["loss"])))
    told["tokens"] = (moments[0]["tokens"] == moments[1]["tokens"]).all().item()
    return told


@check
def ddp(folder: Path) -> Any:
    """Two ranks and one device, whole, and two ranks of which one dies."""
    one = trained(parts("vision"), folder / "one", callbacks=[SparsityRecorder(5)])
    two = trained(parts("vision"), folder / "two", 2, callbacks=[SparsityRecorder(5)])
    killed = interrupted(folder / "killed", "vision", 2)
    return {"one": compared(two, one), "killed": compared(killed, two), "trace": traces(two, one)}


@check
def fsdp2(folder: Path) -> Any:
    """The same in shards, with a snapshot on the way."""
    asked: dict[str, Any] = {"keep": ["model", "step=3"]}
    one = trained(parts("vision", max_epochs=1), folder / "one", callbacks=[SparsityRecorder(5)], **asked)
    given = parts("vision", max_epochs=1, strategy="fsdp2")
    two = trained(given, folder / "two", 2, callbacks=[SparsityRecorder(5), Weigh(folder)], **asked)
    killed = interrupted(folder / "killed", "vision", 2, max_epochs=1, strategy="fsdp2")
    snapshots = [load_file(next((run.path / "model_at_step=3").glob("*.safetensors"))) for run in (two, one)]
    apart = max(float((snapshots[0][name] - snapshots[1][name]).abs().max()) for name in snapshots[1])
    found = {"one": compared(two, one), "killed": compared(killed, two), "trace": traces(two, one)}
    share = sum(int(file.read_text()) for file in folder.glob("held*")) / sum(w.numel() for w in weights(one).values())
    return found | {"snapshot": apart, "held": share}


def interrupted(folder: Path, kind: str, ranks: int, **trainer: Any) -> Run:
    """Train on ranks of which the last dies in the first epoch, and start the same again."""
    folder.mkdir()
    dying = Die(ranks - 1, 5, folder)
    try:
        trained(parts(kind, **trainer), folder, ranks, callbacks=[dying, SparsityRecorder(5)])
    except RuntimeError:
        assert (folder / "checkpoints" / "last.ckpt").is_file() and not Run(folder).finished
    else:
        raise AssertionError("a rank's death was not noticed")
    return trained(parts(kind, **trainer), folder, ranks, callbacks=[dying, SparsityRecorder(5)])


@check
def four(folder: Path) -> Any:
    """Four ranks with shards they cannot share evenly, of which two have no row of the last batch; a moving average."""
    given = parts("vision", rows=66, max_epochs=2, accumulate_grad_batches=2, strategy="fsdp2")
    given["task"] = functools.partial(given["task"], ema_momentum=0.9, export="average")
    return compared(trained(given, folder / "four", 4), trained(given, folder / "one"))


@check
def centre(folder: Path) -> Any:
    """Self-distillation, whose centre is of the whole batch."""
    given = parts("self-supervised", rows=99)
    given["task"] = functools.partial(given["task"], export="student", centre_momentum=0.0)
    return compared(trained(given, folder / "two", 2), trained(given, folder / "one"))


@check
def terms(folder: Path) -> Any:
    """Losses are means over unequal numbers of labels; the last rank only borrows its row. Then ranks that differ."""
    x = torch.arange(12.0).view(6, 2)

    def work(rank: int) -> None:
        store = torch.distributed.FileStore(str(folder / "terms-place"), 3)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=3)
        weight = torch.ones(2, requires_grad=True)
        rows = [x[:4], x[4:], x[:1]][rank]
        row = torch.tensor([[0, 1, 2, 3], [4, 5], [-1]][rank])
        batch = {"row": row, "labels": torch.zeros(len(rows)), "attention_mask": torch.ones(len(rows), 7)}
        outputs = told((rows @ weight).square().mean(), batch)
        outputs["loss"].backward()
        assert weight.grad is not None
        torch.distributed.all_reduce(weight.grad)
        whole = torch.ones(2, requires_grad=True)
        loss = (x @ whole).square().mean()
        loss.backward()
        assert whole.grad is not None
        assert torch.allclose(weight.grad / 3, whole.grad)
        assert torch.isclose(outputs[MEAN_LOSS], loss)
        assert (int(outputs[NUM_ROWS]), int(outputs[NUM_TOKENS])) == (6, 42)

        given = {"blocks.0.weight": torch.ones(4, 4), "blocks.1.weight": torch.arange(16.0).view(4, 4)}
        masks = Pruner()(given, sparsity=0.5)
        check_ranks(masks, given, step=7)
        told_of = []
        given["blocks.1.weight"][2, 2] += 1e-6 * (rank == 2)
        for ours in (masks, Pruner()(given, sparsity=0.25) if rank else masks):
            try:
                check_ranks(ours, given, step=8)
            except RuntimeError as error:
                told_of.append(str(error))
        (folder / f"told{rank}.json").write_text(json.dumps(told_of))

    fork(3, work)
    return [json.loads((folder / f"told{rank}.json").read_text()) for rank in range(3)]


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    PruningCallback.__init__.__kwdefaults__["compared_every"] = 4
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        (folder / name).mkdir()
        began = time.monotonic()
        told = CHECKS[name](folder / name)
        (folder / f"{name}.json").write_text(json.dumps(told))
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
