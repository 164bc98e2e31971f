"""Own data without Python: csv, parquet and jsonl through the command that README names."""

import json

import pandas as pd
import pytest

ROWS = [
    {"question": f"is {i} even", "passage": "numbers " * (i % 3 + 1), "answer": "yes" if i % 2 == 0 else "no"}
    for i in range(64)
]
TEXT = "data=table data.text=[question,passage] data.label=answer"
TRAIN = f"train backbone=bert_tiny {TEXT} trainer.max_steps=2 sparsity=0.5"


def write(folder, ending):
    table = pd.DataFrame(ROWS)
    for name, part in (("a", table[:40]), ("b", table[40:])):
        path = folder / f"{name}.{ending}"
        if ending == "csv":
            part.to_csv(path, index=False)
        elif ending == "parquet":
            part.to_parquet(path)
        else:
            path.write_text(
                "\n".join(json.dumps(row) for row in ROWS[slice(0, 40) if name == "a" else slice(40, None)])
            )


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_table_of_ones_own(ending, command, tmp_path):
    write(tmp_path, ending)
    code, out, err = command(f"{TRAIN} data.train=a.{ending} data.validation=b.{ending}")
    assert code == 0, err
    assert "at sparsity 0.5000" in out


@pytest.mark.parametrize("wrong, line", [
    ("data.label=anser", "answer"),
    ("data.text=[question,pasage]", "passage"),
    ("data.train=c.csv", "c.csv"),
])  # fmt: skip
def test_mistakes_in_ones_own_table_are_one_line(wrong, line, command, tmp_path):
    write(tmp_path, "csv")
    code, _, err = command(f"{TRAIN} data.train=a.csv data.validation=b.csv {wrong}")
    assert code == 2
    (error,) = err.strip().splitlines()
    assert line in error
