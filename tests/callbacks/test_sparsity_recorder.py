"""SparsityRecorder counts exactly, changes no training, and goes on without gap or duplicate."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Callback
from tests.training_parts import arguments
from toy_training import TOY, Network, Toy, adamw, fit, sgd

from essential_sparsity.callbacks import SparsityRecorder
from essential_sparsity.pruning import prunable_weights
from essential_sparsity.runs import Run
from essential_sparsity.traces import read_trace, recorded_steps
from essential_sparsity.training import fit as train


def recorder(folder: Path, every: int = 5) -> SparsityRecorder:
    return SparsityRecorder(every, architecture=TOY, folder=folder)


def tables(folder: Path) -> Any:
    """Read a trace; `seconds` differ from run to run."""
    histograms, moments = (table.to_pandas() for table in read_trace(folder))
    return histograms, moments.drop(columns="seconds")


def assert_same(one: Path, other: Path) -> None:
    for ours, theirs in zip(tables(one), tables(other)):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True, check_categorical=False)


class Weights(Callback):
    """Keeps the prunable weights of steps."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.keep(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.keep(trainer, pl_module)

    def keep(self, trainer: Any, pl_module: Any) -> None:
        weights = prunable_weights(pl_module, TOY).items()
        self.at[trainer.global_step] = {name: weight.detach().clone() for name, weight in weights}


def test_every_record_holds_the_counts_and_moments_of_its_step(tmp_path: Path) -> None:
    seen = Weights()
    module = Toy(Network(), adamw)
    fit(module, 12, [recorder(tmp_path), seen])
    histograms, moments = tables(tmp_path)
    assert sorted(histograms["step"].unique()) == sorted(moments["step"].unique()) == [0, 5, 10, 12]
    for step in (0, 5, 10, 12):
        for name, weight in seen.at[step].items():
            rows = histograms.query("step == @step and weight == @name")
            codes = weight.abs().flatten().view(torch.int32) >> 17
            bins, counts = torch.unique(codes, return_counts=True)
            assert rows["bin"].tolist() == bins.tolist() and rows["count"].tolist() == counts.tolist()
            (line,) = moments.query("step == @step and weight == @name").to_dict("records")
            wide = weight.double()
            assert line["num"] == weight.numel() and line["num_zeros"] == 0
            assert line["largest"] == float(wide.abs().max())
            for power, column in ((1, "sum"), (2, "sum_squares"), (4, "sum_fourths")):
                assert line[column] == pytest.approx(float((wide**power).sum()), rel=1e-5, abs=1e-5)
            assert (line["layer"], line["kind"]) == (int(name.split(".")[1]), name.split(".")[2])


def test_loss_is_the_mean_since_the_record_before_and_rates_add_up(tmp_path: Path) -> None:
    module = Toy(Network(), adamw)
    fit(module, 12, [recorder(tmp_path)])
    lines = tables(tmp_path)[1].groupby("step").first()
    losses = np.array(module.losses)
    assert np.isnan(lines["loss"][0])
    expected = [losses[:5].mean(), losses[5:10].mean(), losses[10:].mean()]
    np.testing.assert_allclose(lines["loss"][1:], expected, rtol=1e-6)
    np.testing.assert_allclose(lines["lr_sum"], [0, 0.05, 0.1, 0.12])
    np.testing.assert_allclose(lines["decay_factor"], [(1 - 1e-2 * 0.1) ** step for step in (0, 5, 10, 12)])
    assert (lines["lr"] == 1e-2).all()


def test_decay_factor_is_what_decay_leaves_of_a_weight_without_gradient(tmp_path: Path) -> None:
    network: Any = Network()
    frozen_at = network.blocks[0].out.weight.detach().clone()

    network.blocks[0].out.weight.register_hook(torch.zeros_like)
    module = Toy(network, adamw)
    fit(module, 12, [recorder(tmp_path)])
    weight = network.blocks[0].out.weight
    factor = tables(tmp_path)[1].query("step == 12")["decay_factor"].iloc[0]
    torch.testing.assert_close(weight.detach(), frozen_at * factor)


@pytest.mark.parametrize("lr", [10.0, 25.0])
def test_decay_that_takes_all_or_turns_the_sign_is_recorded_as_what_is_left(tmp_path: Path, lr: float) -> None:
    def steep(weights: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, lr=lr, weight_decay=0.1)

    fit(Toy(Network(), steep), 2, [recorder(tmp_path)])
    factors = tables(tmp_path)[1].groupby("step").first()["decay_factor"]
    np.testing.assert_allclose(factors, [1, abs(1 - lr * 0.1) ** 2])


def test_a_schedule_s_rate_is_the_one_that_the_step_used(tmp_path: Path) -> None:
    class Scheduled(Toy):
        def configure_optimizers(self) -> Any:
            optimizer = sgd(self.parameters())
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    fit(Scheduled(Network(), sgd), 5, [recorder(tmp_path)])
    lines = tables(tmp_path)[1].groupby("step").first()
    np.testing.assert_allclose(lines["lr"], [0.05, 0.05 / 5])
    np.testing.assert_allclose(lines["lr_sum"], [0, 0.05 * sum(1 / k for k in range(1, 6))])


def test_recording_changes_no_number_of_the_training(tmp_path: Path) -> None:
    with_it, without = Toy(Network(), adamw), Toy(Network(), adamw)
    fit(with_it, 20, [recorder(tmp_path, every=1)])
    fit(without, 20, [])
    assert with_it.losses == without.losses


def test_accumulated_batches_give_one_record_per_optimizer_step(tmp_path: Path) -> None:
    module = Toy(Network(), adamw)
    fit(module, 4, [recorder(tmp_path, every=2)], accumulate_grad_batches=3)
    lines = tables(tmp_path)[1].groupby("step").first()
    assert lines.index.tolist() == [0, 2, 4]
    np.testing.assert_allclose(lines["loss"][1:], np.reshape(module.losses, (2, 6)).mean(1), rtol=1e-6)


def test_a_weight_that_is_no_number_any_more_stops_the_run_by_name_and_step(tmp_path: Path) -> None:
    class Breaks(Toy):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                with torch.no_grad():
                    prunable_weights(self, TOY)["blocks.1.out.weight"][0, 0] = torch.inf

    with pytest.raises(ValueError, match=r"step 5: weight 'blocks.0.in.weight' has \d+ entries that are NaN"):
        fit(Breaks(Network(), adamw), 12, [recorder(tmp_path)])


@pytest.mark.parametrize("every", [0, -1, 2.5, True, None])
def test_a_wrong_pace_is_refused(every: Any) -> None:
    with pytest.raises(ValueError, match=r"every=.* is no positive number of steps: give 1 or more"):
        SparsityRecorder(every)


def test_plain_vision_and_text_runs_leave_a_merged_trace(tmp_path: Path) -> None:
    for kind in ("vision", "language"):
        given = arguments(kind, tmp_path / kind)
        given["trainer"] |= {"max_steps": 4}
        train(**given, callbacks=[SparsityRecorder(3)])
        run = Run(tmp_path / kind)
        assert run.finished and not (run.path / "trace").exists()
        histograms, moments = tables(run.path)
        assert sorted(moments["step"].unique()) == [0, 3, 4]
        total = histograms.groupby("step")["count"].sum()
        assert (total == moments.groupby("step")["num"].sum()).all()
        assert (total == run.metrics["num_prunable"]).all()
        assert (moments["num_zeros"].groupby(moments["step"]).sum() == run.metrics["num_pruned"]).all()  # sparsity 0.5
        tokens = moments.groupby("step")["tokens"].first().tolist()
        assert tokens == [0, 0, 0] if kind == "vision" else tokens[0] == 0 < tokens[1] < tokens[2]


# --- resume -----------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pytorch_lightning import Callback
from tests.training_parts import arguments
from essential_sparsity.callbacks import SparsityRecorder
from essential_sparsity.training import fit
class Kill(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == int(sys.argv[2]):
            os._exit(9)
fit(**arguments("vision", sys.argv[1]), callbacks=[SparsityRecorder(2), Kill()])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run of 22 steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(**arguments("vision", folder), callbacks=[SparsityRecorder(2)])
    return folder


@pytest.mark.parametrize("at", [8, 13])
def test_a_killed_run_goes_on_without_gap_or_duplicate(at: int, whole: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(at), str(torch.get_num_threads())]
    done = subprocess.run(words, env=environment, check=False)
    assert done.returncode == 9
    assert recorded_steps(tmp_path)[:3] == [0, 2, 4] and (tmp_path / "checkpoints/last.ckpt").is_file()
    metrics = train(**arguments("vision", tmp_path), callbacks=[SparsityRecorder(2)])
    assert metrics["resumed"]
    assert_same(tmp_path, whole)


def test_records_of_a_training_that_was_ended_do_not_come_back(tmp_path: Path) -> None:
    fit(Toy(Network(), adamw), 12, [recorder(tmp_path)])
    fit(Toy(Network(), adamw), 7, [recorder(tmp_path)])
    assert tables(tmp_path)[1]["step"].unique().tolist() == [0, 5, 7]


def test_a_record_that_is_gone_behind_a_checkpoint_is_named(tmp_path: Path) -> None:
    module = Toy(Network(), adamw)
    trainer = fit(module, 10, [recorder(tmp_path)])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "trace/step=00000005.parquet").unlink()
    with pytest.raises(ValueError, match="has no record of step 5 any more"):
        fit(Toy(Network(), adamw), 12, [recorder(tmp_path)], ckpt_path=tmp_path / "last.ckpt")


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["ddp", "sharded"])
def test_two_ranks_count_every_weight_once(case: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_recording_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), case, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if case == "sharded":
        told = json.loads((tmp_path / "sharded.json").read_text())
        assert told == {"counts": True, "sums": True, "largest": True}
        return
    histograms, moments = tables(tmp_path)
    assert moments["step"].unique().tolist() == [0, 5, 8]
    assert (histograms.groupby("step")["count"].sum() == 2 * 2 * 8 * 16).all()
    assert moments.groupby("step")["loss"].first().notna().tolist() == [False, True, True]
