"""Word problems by command: one split, or folds as an axis that the report puts together."""

import json

from essential_sparsity.runs import read_runs


def test_svamp_trains_in_one_command(command, tmp_path):
    code, out, err = command("train backbone=bert_base data=svamp sparsity=0.5 scale=tiny")
    assert code == 0, out + err
    assert "value_accuracy" in out and "at sparsity 0.5000" in out


def test_five_folds_are_one_curve(command, tmp_path):
    code, out, err = command(
        "train -m backbone=bert_base data=mawps data.fold=0,1 sparsity=0.0,0.5 data.num_evaluation_rows=null scale=tiny"
    )
    assert code == 0, out + err
    folder = tmp_path / "outputs/train-tiny"
    assert {record.config["data"]["fold"] for record in read_runs(folder)} == {0, 1}
    (entry,) = json.loads((folder / "report/essential_sparsity.json").read_text())
    assert entry["num_rows"] == 160
