"""The commands: the only place that knows Hydra."""

from pathlib import Path

_PACKAGED = Path(__file__).resolve().parent.parent / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[3] / "conf"
"""The folder of our YAML files: packed into the wheel, or the repository's."""
