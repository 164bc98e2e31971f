"""Question answering from the command line: a grid at scale=tiny ends in a report of F1, calibrated pruners too."""

import json

from essential_sparsity.runs import read_runs


def test_a_grid_of_question_answering_is_one_command(command, tmp_path):
    code, out, err = command("train -m name=squad data=squad scale=tiny sparsity=0.0,0.5 pruner=omp,wanda seed=0")
    assert code == 0, out + err
    records = read_runs(tmp_path / "outputs/squad-tiny")
    assert len(records) == 4 and all(record.finished for record in records)
    assert {record.metrics["metric"] for record in records} == {"squad_f1"}
    assert all("validation/exact_match" in record.metrics["metrics"] for record in records)
    assert all(record.metrics["metrics"]["train/num_unanswered"] == 0 for record in records)
    results = json.loads((tmp_path / "outputs/squad-tiny/report/essential_sparsity.json").read_text())
    assert results and all("status" in row for row in results)


def test_an_image_model_or_a_wrong_task_is_one_line(command):
    code, out, err = command("train backbone=vit_tiny data=embedded_squad")
    assert code != 0 and "these data are text, but the backbone reads images" in out + err
    code, out, err = command("train backbone=bert_tiny data=embedded_text task=question_answering trainer.max_steps=1")
    assert code != 0 and "task=question_answering asks data with questions: give data=squad" in out + err
