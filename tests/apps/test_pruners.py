"""Pruners as they are typed: patterns, explicit shares and saved masks are configurations like any other."""

import pytest

from essential_sparsity.runs import read_runs

TINY = "train backbone=bert_tiny data=embedded_text scale=tiny"


def test_a_pattern_is_one_configuration_however_it_is_spelt(command, tmp_path):
    for spelt in ("pruner.pattern=2:4", "pruner.pattern.keep=2", "pruner/pattern=nm", "pruner.pattern={keep:2,of:4}"):
        code, out, err = command([*TINY.split(), "pruner=nm", spelt])
        assert code == 0, out + err
    (record,) = read_runs(tmp_path / "outputs/train-tiny")
    node = record.config["pruner"]["pattern"]
    assert (node["keep"], node["of"], node["axis"], node["remainder"]) == (2, 4, "input", "error")
    assert record.metrics["sparsity"] == record.metrics["sparsity_requested"] == 0.5

    code, out, err = command([*TINY.split(), "pruner=saved", f"pruner.masks={record.path}"])
    assert code == 0, out + err
    saved = next(run for run in read_runs(tmp_path / "outputs/train-tiny") if "masks" in run.config["pruner"])
    assert saved.metrics["value"] == record.metrics["value"] and saved.metrics["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pruner=nm", "pruner.pattern=124"], "pattern=124 is a number, as YAML reads 2:4 in base 60"),
        (["pruner=nm", "pruner.pattern=5:4"], "pattern 5:4 keeps 5 of each 4 weights"),
        (["pruner=nm", "sparsity=0.3"], "sparsity=0.3 contradicts pattern 2:4"),
        (["pruner=explicit", r"pruner.allocation.sparsities={kind\:qurey: 0.5}"], "did you mean 'kind:query'"),
        (["pruner=saved", "pruner.masks=nowhere"], "nowhere does not exist: give a masks file"),
    ],
)
def test_a_wrong_pruner_is_told_in_one_line(command, words, message):
    code, out, err = command([*TINY.split(), *words])
    assert code != 0
    assert message in out + err


def test_shares_are_given_on_the_command_line(command, tmp_path):
    code, out, err = command(
        [*TINY.split(), "pruner=explicit", r"pruner.allocation.sparsities={*: 0.25, kind\:mlp_*: 0.5}"]
    )
    assert code == 0, out + err
    (record,) = read_runs(tmp_path / "outputs/train-tiny")
    assert 0.25 < record.metrics["sparsity"] < 0.5
