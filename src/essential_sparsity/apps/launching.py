"""Launching points through any launcher, so that a worker's death takes no other point, and its own is tried again."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from essential_sparsity.apps import conf, sweeps
from essential_sparsity.apps.guard import Outcome, kind_of, one_line

MOST_DEATHS = 3
"""Workers that a point may lose before it counts as failed."""


def launch(sweeper: Any, points: Sequence[Sequence[str]], initial_job_idx: int = 0) -> list[Any]:
    """Launch points (their overrides) and give one JobReturn each, in order, whatever became of the workers.

    `sweeper` has `launcher`, `hydra_context`, `config` and `task`, the Submitted that its launcher was set up with.
    Points with nothing left to do are looked through in this process, the others go to the launcher; where it loses
    some, those are launched again, at most MOST_DEATHS times each. Raises ValueError where it cannot launch at all.
    """
    if type(sweeper.launcher).__name__ == "BasicLauncher":  # by name: Hydra's scan for plugins loads modules anew
        return list(sweeper.launcher.launch(points, initial_job_idx=initial_job_idx))
    return _Launched(sweeper, [list(point) for point in points], initial_job_idx).all()


class _Launched:
    """The points of one call of `launch`, and what is known of each."""

    def __init__(self, sweeper: Any, points: list[list[str]], first: int) -> None:
        self.sweeper, self.points, self.first = sweeper, points, first
        self.asked: list[conf.Asked | None] = [None] * len(points)
        self.returned: dict[int, JobReturn] = {}
        self.deaths = [0] * len(points)
        self.is_unsure = False  # whose worker died, where a launcher ended with it
        sweeper.task.folder, sweeper.task.points = Path.cwd(), {}
        for number, point in enumerate(points):
            self._compose(number, point)

    def all(self) -> list[JobReturn]:
        """Launch, and launch again what was lost, until each point has its return."""
        while todo := [number for number in range(len(self.points)) if number not in self.returned]:
            here = [number for number in todo if _nothing_to_do(self.asked[number])]
            for number in here:
                self.returned[number] = self._do_here(number)
            there = [number for number in todo if number not in here]
            alone = self.is_unsure and any(self.deaths[number] == MOST_DEATHS - 1 for number in there)
            for group in [[number] for number in there] if alone else [there] if there else []:
                self._launch(group)
        return [self.returned[number] for number in range(len(self.points))]

    def _compose(self, number: int, point: list[str]) -> None:
        """Compose a point as its worker will; one that cannot be completed fails in this process, by itself."""
        from hydra.core.hydra_config import HydraConfig

        config = self.sweeper.hydra_context.config_loader.load_sweep_config(self.sweeper.config, point)
        before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, config
        try:
            self.asked[number] = asked = conf.from_hydra(_without_hydra(config))
            self.sweeper.task.points[tuple(config.hydra.overrides.task)] = asked
        except Exception:
            self.asked[number] = None
        finally:
            HydraConfig.instance().cfg = before

    def _do_here(self, number: int) -> JobReturn:
        """Do a point in this process, with all its checks."""
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher

        launcher, sweeper = BasicLauncher(), self.sweeper
        launcher.setup(hydra_context=sweeper.hydra_context, task_function=sweeper.task.job, config=sweeper.config)
        return launcher.launch([self.points[number]], initial_job_idx=self.first + number)[0]

    def _launch(self, group: Sequence[int]) -> None:
        """Give some points to the launcher, and keep what it gives back; count the deaths of what it lost."""
        points = [self.points[number] for number in group]
        try:
            found: Sequence[Any] = self.sweeper.launcher.launch(points, initial_job_idx=self.first + group[0])
            reason = ""
        except (ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError):
            raise  # no worker's death: it cannot launch
        except Exception as error:  # other launchers end with the first worker that does
            self.is_unsure = True
            found, reason = [None] * len(group), f"{type(error).__name__}: {one_line(error)}"
        died = []
        for number, returned in zip(group, found, strict=True):
            answer = None if returned is None else plain(returned, self.points[number])
            if answer is not None and getattr(answer.return_value, "status", None) != "lost":
                self._keep(number, answer)
                continue
            self.deaths[number] += 1
            died.append((number, reason if answer is None else answer.return_value.message))
        if died:
            self._count(died)

    def _count(self, died: Sequence[tuple[int, str]]) -> None:
        """Tell of the points whose worker died, and give up those that lost too many."""
        _tell(f"{len(died)} of {len(self.points)} points lost their worker, as the first: {died[0][1]}")
        for number, reason in died:
            if self.deaths[number] >= MOST_DEATHS and not _nothing_to_do(self.asked[number]):
                message = f"its worker died {self.deaths[number]} times, the last time: {reason}"
                self._keep(number, given_up(self.points[number], message, self.asked[number]))

    def _keep(self, number: int, returned: JobReturn) -> None:
        self.returned[number] = returned
        asked, outcome = self.asked[number], returned.return_value
        if isinstance(outcome, Outcome) and asked is not None:
            sweeps.progress.tell(outcome, asked.folder)


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _without_hydra(config: Any) -> Any:
    from omegaconf import OmegaConf, open_dict, read_write

    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    with read_write(config), open_dict(config):
        return config


def _nothing_to_do(asked: conf.Asked | None) -> bool:
    """Say whether a point needs no worker: it is finished, only planned, or cannot be completed."""
    if asked is None or asked.config.get("plan"):
        return True
    config, run = asked.config, asked.run
    if "sparsities" not in config:
        return run.finished and not run.cut_short() and (run.model.is_dir() or not config.get("save_model"))
    if config.get("data") is None or config.get("models"):
        return False
    from essential_sparsity.evaluation import ascending, level_run

    runs = [level_run(asked.folder, asked.record, level)[0] for level in ascending(config["sparsities"])]
    return all(run.finished and not run.cut_short() for run in runs)


# --- what launchers give back -----------------------------------------------------------------------------------------


def returned(overrides: Sequence[str], outcome: Outcome) -> JobReturn:
    """Give an outcome as Hydra's sweepers expect it."""
    made = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    made.return_value = outcome
    return made


def lost(overrides: Sequence[str], reason: str) -> JobReturn:
    """Say that a point's worker died."""
    return returned(overrides, Outcome("lost", list(overrides), kind="WorkerDied", message=reason))


def given_up(overrides: Sequence[str], message: str, asked: conf.Asked | None = None) -> JobReturn:
    """Say that a point's worker died too often; the run, where it has begun, says so, too."""
    outcome = Outcome("failed", asked.overrides if asked else list(overrides), kind="WorkerDied", message=message)
    if asked is not None and (asked.run.path / "run.json").is_file():
        asked.run.fail(kind="WorkerDied", message=message, traceback="", step=None)
        outcome.path = str(asked.run.path)
    return returned(overrides, outcome)


def failed(overrides: Sequence[str], error: BaseException) -> JobReturn:
    """Say that a point ended by an exception outside its own guard."""
    return returned(overrides, Outcome("failed", list(overrides), kind=kind_of(error), message=one_line(error)))


def plain(job: JobReturn, overrides: Sequence[str]) -> JobReturn:
    """Give what a worker returned with an outcome in it, even where its job was none."""
    if job.status == JobStatus.FAILED:
        return failed(overrides, job._return_value)
    if job.return_value is None:
        return failed(overrides, RuntimeError("its job ended without a word: look at the launcher's logs"))
    return job
