"""Fixtures of the data tests."""

import pytest

from essential_sparsity.backbones.language import TextPreprocessing
from essential_sparsity.backbones.tiny import TinyLanguageBackbone


@pytest.fixture(scope="session")
def tiny() -> TextPreprocessing:
    """Give the tokenizer that needs no download."""
    return TinyLanguageBackbone().preprocessing()
