"""Backbones: specifications of pre-trained transformers; `preprocessing()` is cheap, `build(…)` loads the model."""
