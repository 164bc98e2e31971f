"""What a launcher's worker is given: the job, the folder it was started in, and the configuration of every point.

A worker composes its configuration from the files that lie there when it starts, which for a requeued job may be days
after it was submitted. It goes on only under the configuration that was submitted.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from essential_sparsity import preemption
from essential_sparsity.apps import conf
from essential_sparsity.apps.guard import Outcome, guarded
from essential_sparsity.runs import differences, identity

PATIENCE = 60.0
"""Seconds that a point waits for its run folder: what a killed worker started may hold it for some of them."""

LOOKED_EVERY = 2.0


class ChangedConfiguration(ValueError):
    """The configuration that lies there now is not the one that was submitted."""

    def __init__(self, found: list[str]) -> None:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        remedy = "put it back as it was, or start the sweep again"
        shown = "; ".join(line.replace(", there: ", ", submitted: ") for line in found[:3])
        super().__init__(f"the configuration changed since this point was submitted: {shown}{more}: {remedy}")


@dataclass
class Submitted:
    """A job as Hydra's launchers call it; `points` is by the overrides of each, empty in the sweep's own process."""

    job: Callable[[DictConfig], Any]
    folder: Path | None = None
    points: dict[tuple[str, ...], conf.Asked] = field(default_factory=dict)

    def __call__(self, composed: DictConfig) -> Any:
        """Do the point that Hydra composed; one whose configuration changed fails, and what it had is kept."""
        from hydra.core.hydra_config import HydraConfig

        if self.folder is None:
            return self.job(composed)
        submitted = self.points.get(tuple(HydraConfig.get().overrides.task))
        with preemption.heeded(), contextlib.chdir(self.folder):
            if submitted is not None and (refused := refusal(composed, submitted)) is not None:
                return refused
            return self._patiently(composed)

    def _patiently(self, composed: DictConfig) -> Any:
        """Do the job, again while another process holds its run folder."""
        until = time.monotonic() + PATIENCE
        while True:
            result = self.job(composed)
            found = result if isinstance(result, list) else [result]
            held = any(getattr(outcome, "kind", None) == "BlockingIOError" for outcome in found)
            if not held or time.monotonic() > until:
                return result
            time.sleep(LOOKED_EVERY)


def refusal(composed: DictConfig, submitted: conf.Asked) -> Outcome | None:
    """Give the failed outcome of a point whose configuration is not the submitted one any more; None where it is."""
    try:
        now = conf.from_hydra(composed)
    except Exception:  # the job says what it is
        return None
    if not (found := differences(decisive(now.recorded), decisive(submitted.recorded))):
        return None

    def refuse() -> Outcome:
        raise ChangedConfiguration(found)

    run = None if "sparsities" in submitted.config else submitted.run  # a curve has a folder for each of its levels
    return guarded(refuse, overrides=submitted.overrides, run=run, record=submitted.record, always=True)


def decisive(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Give what must not change between submission and start: what decides the result, and where it goes."""
    return {**identity(recorded), "name": recorded.get("name"), "paths": recorded.get("paths")}
