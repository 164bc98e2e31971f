"""The user's own ./conf, before ours: add or replace YAML files without touching the sources."""

import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin


class WorkingFolder(SearchPathPlugin):
    """Prepend `./conf` of the working directory to the search path of our apps, and of no others."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put `./conf` first where it exists and is not ours already."""
        ours = sys.modules.get("essential_sparsity.apps.conf")
        own = Path.cwd() / "conf"
        if ours is not None:
            _drop_plugins_launchers()
        if ours is not None and own.is_dir() and own.resolve() != ours.CONF.resolve():
            search_path.prepend("working-folder", f"file://{own}")


def _drop_plugins_launchers() -> None:
    """Take the plugins' launchers that conf/hydra/launcher replaces from Hydra's store: it would merge both."""
    launchers = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in ("joblib", "ray", "submitit_local", "submitit_slurm"):
        launchers.pop(f"{name}.yaml", None)
