"""Every YAML of a part names a class or function that takes exactly the keys it gives."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("backbone", "data", "task", "optimizer", "schedule")
FILES = sorted(file for group in GROUPS for file in (CONF / group).glob("*.yaml"))
NOT_ARGUMENTS = {"_target_", "_partial_", "task", "data"}


def arguments_of(target: type) -> set[str]:
    """Names that a class takes, its parents' included where it passes `**options` on."""
    kinds = target.__mro__ if inspect.isclass(target) else [target]
    names: set[str] = set()
    for kind in kinds:
        parameters = inspect.signature(kind.__init__ if inspect.isclass(kind) else kind).parameters.values()
        names |= {item.name for item in parameters}
        if not any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters):
            break
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_yaml_fits_its_target(file: Path) -> None:
    assert file.read_text().startswith("# "), "a YAML opens with one sentence"
    content = yaml.safe_load(file.read_text())
    module, _, name = content["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), name)
    unknown = set(content) - NOT_ARGUMENTS - arguments_of(target)
    assert not unknown


@pytest.mark.parametrize("file", sorted((CONF / "data").glob("*.yaml")), ids=lambda file: file.stem)
def test_data_choose_a_task_that_exists(file: Path) -> None:
    assert (CONF / "task" / f"{yaml.safe_load(file.read_text())['task']}.yaml").is_file()
