"""The identity of a call from Python, which has no configuration: what its arguments say of themselves."""

import functools
from collections.abc import Mapping
from typing import Any

SILENT = ("run", "logger", "callbacks", "launch")
"""What a run's own call does not tell either: where it lies, what watches it, what starts its ranks."""


def told(value: Any) -> Any:
    """Say what an argument is, the same in every process; ValueError where it cannot be said."""
    if isinstance(value, Mapping):
        return {str(key): told(item) for key, item in value.items() if key not in SILENT}
    if isinstance(value, (list, tuple)):
        return [told(item) for item in value]
    if isinstance(value, functools.partial):
        keywords = ", ".join(f"{key}={told(item)}" for key, item in sorted(value.keywords.items()))
        return f"{told(value.func)}({', '.join([*map(str, map(told, value.args)), keywords])})"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    text = repr(value)
    if " at 0x" in text:
        raise ValueError(f"{text} has no lasting name, so the run has no identity: give record={{'config': …}}")
    return text
