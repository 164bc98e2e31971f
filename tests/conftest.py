"""Fixtures for all tests: quiet threads before torch is imported, and the real inputs where they exist."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from pathlib import Path

import pytest

SPREAD = ("test_experiments.py", "test_training.py")
"""Files whose tests take long and share nothing: they may run in any process."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the other files' tests in one process each, where they share fixtures (`pytest -n 2 --dist loadgroup`)."""
    for item in items:
        if item.path.name not in SPREAD:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


def _folder(variable: str) -> Path:
    """Give the folder that an environment variable names, or skip the test, visibly."""
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"{variable} names no folder: real inputs are not here")
    return Path(value).resolve()


@pytest.fixture(scope="session")
def es_data() -> Path:
    """Give the folder of real data sets (layout: data/README.md there)."""
    return _folder("ES_DATA")


@pytest.fixture(scope="session")
def es_models() -> Path:
    """Give the folder of real pre-trained models in `save_pretrained` layout."""
    return _folder("ES_MODELS")
