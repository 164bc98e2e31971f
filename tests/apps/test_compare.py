"""compare from the command line: runs, files and patterns in; similarity.csv, figures, a page out."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from essential_sparsity.apps.main import main, quoted
from essential_sparsity.pruning import Masks, Pruner, Random, prunable_weights
from essential_sparsity.report.similarity import level_figure, pair_rows, terminal_pairs

TINY = "train backbone=vit_tiny data=digits trainer.max_epochs=1 trainer.max_steps=2 save_model=true"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Give a folder with a dense run, and one-shot and random masks of two seeds on its model, by real commands."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def train(words: str) -> None:
            patch.setattr(sys, "argv", ["essential-sparsity"])
            assert main(f"{TINY} {words}".split()) == 0

        train("name=dense")
        (dense,) = Path("outputs/dense").glob("*~*")
        for pruner in ("omp", "random"):
            for seed in (0, 1):
                about = f"name=sweep pruner={pruner} sparsity=0.5 seed={seed}"
                train(f"{about} backbone.path={dense / 'model'} backbone.pretrained=true")
    return folder / "outputs"


@pytest.fixture
def here(runs, tmp_path):
    """Give a copy of those runs where the command runs."""
    shutil.copytree(runs, tmp_path / "outputs")
    return tmp_path / "outputs"


def test_a_folder_of_runs_gives_a_table_figures_and_a_page(command, here):
    code, out, err = command("compare masks=outputs/sweep")
    assert code == 0, err
    assert re.search(r"random at 0.5, seed 0 +random at 0.5, seed 1 +0\.50\d+ +0\.5000", out)
    assert "similarity: outputs/compare/similarity.csv" in out and max(map(len, out.splitlines())) <= 120

    table = pd.read_csv(here / "compare/similarity.csv")
    masks = Masks.load(next((here / "sweep").glob("*omp*")) / "masks.safetensors")
    assert len(table) == 3 * (len(masks) + 1)
    assert set(table["differs"]) == {"pruner", "seed"}
    assert len(set(table["contrast"].dropna())) == 2
    assert "null_cosine" not in table
    told = json.loads((here / "compare/similarity.json").read_text())
    assert [each["runs"] for each in told["masks"]] == [2, 1, 1]
    assert masks.digest() in {each["masks sha256"] for each in told["masks"]}
    figures = {path.name for path in (here / "compare/similarity/figures").iterdir()}
    assert figures == {f"{kind}.{ending}" for kind in ("pairs", "levels", "layers") for ending in ("svg", "png")}


def test_the_page_asks_no_network_for_anything(command, here):
    command("compare masks=outputs/sweep")
    text = (here / "compare/similarity/index.html").read_text()
    assert text.count("<img alt=") == 3 and "default-src 'none'" in text
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|data:|../../index.html)", text)
    assert "essential-sparsity compare masks=outputs/sweep" in text


def test_what_is_in_the_csv_draws_the_same_tables(command, here):
    _, out, _ = command("compare masks=outputs/sweep")
    table = pd.read_csv(here / "compare/similarity.csv")
    assert terminal_pairs(table) in out
    assert level_figure(table) is not None
    assert len(pair_rows(table)[1]) == 3


def test_run_folders_are_listed_by_their_names_as_they_are(command, here):
    first, second = (str(path.relative_to(here.parent)) for path in sorted((here / "sweep").glob("*random*")))
    assert "=" in first and "~" in first and "," in first
    code, _, err = command(["compare", f"masks=[{first}, {second}]", "name=two"])
    assert code == 0, err
    assert len(pd.read_csv(here / "two/similarity.csv")["first"].unique()) == 1
    code, _, err = command(["compare", "masks=outputs/sweep/*pruner=random*", "name=pattern"])
    assert code == 0, err
    assert (here / "two/similarity.csv").read_text() == (here / "pattern/similarity.csv").read_text()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("masks=a=1,b=2~x", 'masks="a=1,b=2~x"'),
        ("masks=[a=1,b=2~x,plain]", 'masks=["a=1,b=2~x",plain]'),
        ("masks=[a=1*, plain]", 'masks=["a=1*",plain]'),
        ("masks=*=2~x", 'masks="*=2~x"'),
        ("masks=absent=1", "masks=absent=1"),
        ("sparsities=[0.1,0.3]", "sparsities=[0.1,0.3]"),
        ('data.text=["a=1,b=2~x",plain]', 'data.text=["a=1,b=2~x",plain]'),
        ("plan", "plan"),
        ("x=", "x="),
        ("x=[]", "x=[]"),
        ("x=**y", "x=**y"),
        (f"x=[{'9,' * 5000}]", f"x=[{'9,' * 5000}]"),
    ],
)
def test_paths_are_quoted_where_they_are_there_and_nothing_else_is(word, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a=1,b=2~x", "plain"):
        (tmp_path / name).mkdir()
    assert quoted(word) == expected


def test_a_pre_trained_and_a_trained_checkpoint_give_the_displacement_null(command, here):
    model = next((here / "dense").glob("*~*")) / "model"
    trained = next((here / "sweep").glob("*omp*seed=0*"))
    words = ["compare", "masks=outputs/sweep", f"pretrained={model}", f"trained={trained}", "num_draws=3"]
    code, out, err = command(words)
    assert code == 0, err
    assert "displaced" in out
    table = pd.read_csv(here / "compare/similarity.csv")
    total = table.query("weight == 'total'")
    omp = total["first"].str.startswith("omp") | total["second"].str.startswith("omp")
    assert omp.tolist().count(True) == 2
    assert all(map(math.isnan, total.loc[~omp, "null_cosine"]))  # random masks at two seeds: not omp's
    low, mean, high = (total.loc[omp, name].tolist() for name in ("null_low", "null_cosine", "null_high"))
    assert all(0.5 < a <= b <= c <= 1 for a, b, c in zip(low, mean, high, strict=True))
    told = json.loads((here / "compare/similarity.json").read_text())["displacement"]
    assert told["num_draws"] == 3 and told["score"] == "magnitude" and len(told["pretrained sha256"]) == 64

    code, _, err = command([*words, "pruner=random", "name=random"])
    assert code == 0, err
    null = pd.read_csv(here / "random/similarity.csv").query("weight == 'total'")["null_cosine"]
    assert null.dropna().tolist() == [1.0] * 2  # random masks of this seed; they do not look at the weights


def test_masks_of_another_model_are_refused_by_name(command, here, tmp_path):
    from essential_sparsity.backbones.tiny import TinyLanguageBackbone

    weights = prunable_weights(TinyLanguageBackbone().build(num_labels=2, seed=0))
    Pruner(Random())(weights, sparsity=0.5).save(tmp_path / "bert.safetensors")
    code, _, err = command("compare masks=[outputs/sweep,bert.safetensors]")
    assert code == 2 and "bert at 0.5 belong to different models" in err and "blocks.0.attn.proj.weight" in err
    assert not (here / "compare").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "masks is not set: add masks=…"),
        ("masks=outputs/dense", "a comparison takes two masks or more, as masks=[a,b]"),
        ("masks=[outputs/sweep,outputs/swep]", "masks outputs/swep is not there"),
        ("masks={a:b}", "is no list of paths: give masks=[a,b]"),
        ("masks=[outputs/sweep,3]", "is no list of paths"),
        ("masks=outputs/sweep pretrained=outputs/x", "pretrained=outputs/x alone says nothing of displacement"),
        ("masks=outputs/sweep trained=outputs/x", "alone says nothing of displacement: add pretrained=…"),
        ("masks=outputs/sweep trained=outputs/x pretrained=outputs/x", "checkpoint outputs/x does not exist"),
        ("mask=outputs/sweep", "mask is no key: did you mean masks?"),
    ],
)
def test_bad_input_is_one_line(command, here, words, line):
    code, _, err = command(f"compare {words}")
    assert code == 2
    (error,) = err.strip().splitlines()
    assert line in error
