"""README tells the truth: its commands compose or run, its Python runs, its table names every experiment."""

import re
import sys
from pathlib import Path

import pytest

from essential_sparsity.apps.main import main
from tests import readme_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"`(essential-sparsity (?:train|evaluate|compare|report|doctor) [^`]+)`", README)))


def test_readme_names_every_experiment():
    names = {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")}
    assert names == set(re.findall(r"experiment=(\w+)", README)) & names
    assert set(re.findall(r"experiment=(\w+)", README)) <= names


def test_the_table_of_experiments_says_what_their_files_say():
    _, told, _ = readme_table.parts(README)
    assert told == readme_table.table(told), "python -m tests.readme_table writes it anew"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_readme_composes(command, tmp_path, monkeypatch, capsys):
    words = command.split()[1:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["essential-sparsity", *words])
    assert main([words[0], "--cfg", "job", *words[1:]]) == 0
    assert "name: " in capsys.readouterr().out


def test_the_python_of_readme_runs(tmp_path, monkeypatch):
    from essential_sparsity.backbones.tiny import TinyLanguageBackbone
    from essential_sparsity.pruning import Masks

    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"model": TinyLanguageBackbone().build(num_labels=2, seed=0)})
    masks = [Masks.load(tmp_path / f"masks-{sparsity}.safetensors") for sparsity in (0.3, 0.5, 0.7)]
    assert masks[2].is_nested_in(masks[1]) and masks[1].is_nested_in(masks[0])


def test_the_make_targets_of_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"make (\w+)", README)) <= targets
