"""Calibrated pruners as they are typed: on the run's own rows, on plain text, trained under and evaluated."""

import pyarrow as pa
import pyarrow.parquet as pq

from essential_sparsity.runs import read_runs

TINY = "train backbone=bert_tiny data=embedded_text scale=tiny"


def test_wanda_and_sparsegpt_run_and_say_what_they_calibrated_on(command, tmp_path):
    code, out, err = command(f"{TINY} pruner=wanda sparsity=0.5 pruner.calibration.num_rows=16")
    assert code == 0, out + err
    code, out, err = command(f"{TINY} pruner=sparsegpt_nm pruner.pattern=1:4 pruner.calibration.num_rows=8 seed=1")
    assert code == 0, out + err
    wanda, sparsegpt = sorted(read_runs(tmp_path / "outputs/train-tiny"), key=lambda record: record.metrics["seed"])
    assert wanda.metrics["sparsity"] == 0.5 and sparsegpt.metrics["sparsity"] == 0.75
    assert wanda.config["pruner"]["calibration"]["num_rows"] == 16
    assert wanda.metrics["pruning"] == {"num_calibration_rows": 16}
    assert sparsegpt.metrics["pruning"] == {"num_damped": 0, "num_calibration_rows": 8}


def test_a_curve_prunes_each_level_anew_on_plain_text(command, tmp_path):
    text = pa.table({"text": ["the value of a name in a class is an object of that module"] * 200})
    pq.write_table(text, tmp_path / "text.parquet")
    code, out, err = command(f"{TINY} save_model=true")
    assert code == 0, out + err
    (trained,) = read_runs(tmp_path / "outputs/train-tiny")
    words = [
        *("evaluate", "backbone=bert_tiny", f"backbone.path={trained.path}/model", "data=embedded_text"),
        *("pruner=sparsegpt", "sparsities=[0.0,0.3,0.6]", "pruner/calibration=plain_text"),
        *("pruner.calibration.path=text.parquet", "pruner.calibration.num_rows=8", "pruner.calibration.length=32"),
    ]
    code, out, err = command(words)
    assert code == 0, out + err
    records = read_runs(tmp_path / "outputs/evaluate")
    levels = {record.metrics["sparsity_requested"]: record.metrics for record in records}
    assert levels[0.0]["value"] == trained.metrics["value"]
    assert all(abs(found["sparsity"] - level) < 1e-3 for level, found in levels.items())


def test_what_cannot_be_calibrated_is_told_in_one_line(command):
    code, out, err = command(f"{TINY} pruner=wanda pruner/allocation=global sparsity=0.5")
    assert code != 0 and "give pruner.score.inputs=dense, or pruner/allocation=per_row" in out + err
    code, out, err = command(
        f"{TINY} pruner=wanda sparsity=0.5 pruner/calibration=plain_text pruner.calibration.path=no"
    )
    assert code != 0 and "calibration text 'no' does not exist" in out + err


def test_the_evaluation_text_is_no_calibration_text(command, tmp_path):
    rows = pa.table({"text": [f"row {i} of a small table" for i in range(64)], "label": [i % 2 for i in range(64)]})
    for split in ("train", "validation"):
        pq.write_table(rows.slice(0 if split == "train" else 32, 32), tmp_path / f"{split}.parquet")
    code, out, err = command(
        "train backbone=bert_tiny data=table data.train=train.parquet data.validation=validation.parquet "
        "data.text=[text] data.label=label pruner=wanda sparsity=0.5 pruner/calibration=plain_text "
        "pruner.calibration.path=validation.parquet pruner.calibration.num_rows=2 pruner.calibration.length=8"
    )
    assert code == 2 and "calibrate on text without evaluation rows" in err, out + err
