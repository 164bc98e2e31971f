"""Points on the workers of a host's cards, of SLURM and of Ray, by Hydra's plugins; one that dies takes no other.

The plugins wait for all points and raise the first error, which loses what the others gave. Here each point has an
answer of its own: what its job returned, or that it is lost.
"""

import contextlib
import dataclasses
import importlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf, open_dict

from essential_sparsity.apps.errors import EXTRA
from essential_sparsity.apps.guard import one_line
from essential_sparsity.apps.launching import failed, given_up, lost

PLUGINS = {"joblib": "joblib", "ray": "ray", "submitit_local": "submitit", "submitit_slurm": "submitit"}


def require(name: str) -> None:
    """Raise ValueError, with the remedy, where a launcher's plugin is not installed or its scheduler not at hand."""
    plugin = PLUGINS[name]
    try:
        importlib.import_module(f"hydra_plugins.hydra_{plugin}_launcher")
        importlib.import_module(plugin)
    except ImportError:
        raise ValueError(
            f"hydra/launcher={name} needs hydra-{plugin}-launcher, an extra: pip install {EXTRA}"
        ) from None
    if name == "submitit_slurm" and shutil.which("sbatch") is None:
        raise ValueError(f"hydra/launcher={name} needs sbatch, which is not on PATH: start it on a node of the cluster")


def _of(module: str, name: str) -> Any:
    """Give a name of a package that only the extra brings."""
    return getattr(importlib.import_module(module), name)


# --- the cards of one host --------------------------------------------------------------------------------------------


def on_cards(launcher: Any, points: Sequence[Sequence[str]], first: int) -> list[Any]:
    """Do points in processes of their own, at most `launcher.num_workers` side by side, each on the card it is given.

    Each worker is a pool of one: when it dies, its point is lost and a new worker takes its place.
    """
    from concurrent.futures import FIRST_COMPLETED, wait

    from hydra.core.singleton import Singleton

    execute_job = _of("hydra_plugins.hydra_joblib_launcher._core", "execute_job")
    broken = _of("joblib.externals.loky.process_executor", "BrokenProcessPool")
    common = (launcher.hydra_context, launcher.config, launcher.task_function, Singleton.get_state())
    slots, waiting = assignments(launcher.num_workers), deque(range(len(points)))
    found: list[Any] = [None] * len(points)
    running: dict[Any, tuple[int, int]] = {}
    free = list(range(len(slots)))
    with pools(slots) as pool_of:
        while waiting or running:
            while waiting and free:
                slot, number = free.pop(0), waiting.popleft()
                future = pool_of(slot).submit(execute_job, first + number, list(points[number]), *common)
                running[future] = slot, number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, number = running.pop(future)
                free.append(slot)
                try:
                    found[number] = future.result()
                except broken as error:
                    pool_of(slot, anew=True)
                    found[number] = lost(points[number], one_line(error).partition(" This could")[0])
                except Exception as error:
                    found[number] = failed(points[number], error)
    return found


@contextlib.contextmanager
def pools(slots: Sequence[Mapping[str, str]]) -> Iterator[Callable[..., Any]]:
    """Give a function from a slot's number to its pool of one process, started when asked for; all end with the block.

    A killed worker breaks its own pool alone, which `anew` replaces.
    """
    pool, context = (
        _of("joblib.externals.loky.process_executor", "ProcessPoolExecutor"),
        _of("joblib.externals.loky.backend", "get_context"),
    )
    started: dict[int, Any] = {}

    def pool_of(slot: int, *, anew: bool = False) -> Any:
        if anew and slot in started:
            started.pop(slot).shutdown(wait=True, kill_workers=True)
        if slot not in started:
            started[slot] = pool(1, context=context("loky"), env=dict(slots[slot]))
        return started[slot]

    try:
        yield pool_of
    finally:
        for pool in started.values():
            pool.shutdown(wait=True, kill_workers=True)


def assignments(num_workers: int | None) -> list[dict[str, str]]:
    """Give each worker's environment: its card, and its share of the cores as threads, where the user says nothing."""
    cards = visible_cards()
    number = num_workers if num_workers is not None and num_workers > 0 else len(cards) or os.cpu_count() or 1
    threads = str(max(1, len(os.sched_getaffinity(0)) // number))
    made = [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)} for _ in range(number)]
    for slot, environment in enumerate(made):
        if cards:
            environment["CUDA_VISIBLE_DEVICES"] = cards[slot % len(cards)]
    return made


def visible_cards() -> list[str]:
    """Name the cards that this process may use, as CUDA_VISIBLE_DEVICES does; none without CUDA."""
    import torch

    number = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(card) for card in range(number)] if named is None else named.split(",")[:number]


# --- SLURM ------------------------------------------------------------------------------------------------------------


def on_slurm(launcher: Any, points: Sequence[Sequence[str]], first: int, *, cluster: str) -> list[Any]:
    """Do points as jobs of one array (or, on `cluster="local"`, as processes); Ctrl-C cancels those that are left."""
    from hydra.core.singleton import Singleton

    executor, plugin = _executor(launcher, cluster)
    places = [(list(point), "hydra.sweep.dir", first + number) for number, point in enumerate(points)]
    arguments = [(*place, f"job_id_for_{place[-1]}", Singleton.get_state()) for place in places]
    jobs = executor.map_array(plugin, *zip(*arguments))
    try:
        return [_result(job, point) for job, point in zip(jobs, points, strict=True)]
    except KeyboardInterrupt:
        for job in jobs:
            if not job.done():
                job.cancel(check=False)
        raise


def _executor(launcher: Any, cluster: str) -> tuple[Any, Any]:
    """Give submitit's executor with the launcher's settings, and the plugin's launcher, which is the job."""
    settings = {key: _plain(value) for key, value in launcher.settings.items()}
    kind = "SlurmLauncher" if cluster == "slurm" else "LocalLauncher"
    plugin = _of("hydra_plugins.hydra_submitit_launcher.submitit_launcher", kind)(**settings)
    plugin.setup(hydra_context=launcher.hydra_context, task_function=launcher.task_function, config=launcher.config)
    folder, timeouts = settings.pop("submitit_folder"), settings.pop("max_num_timeout", None)
    options = {} if timeouts is None else {f"{cluster}_max_num_timeout": timeouts}
    executor = _of("submitit", "AutoExecutor")(folder, cluster=cluster, **options)
    queue = _of("hydra_plugins.hydra_submitit_launcher.config", "BaseQueueConf")
    shared = {field.name for field in dataclasses.fields(queue)}
    executor.update_parameters(**{k if k in shared else f"{cluster}_{k}": v for k, v in settings.items()})
    return executor, plugin


def _result(job: Any, overrides: Sequence[str]) -> Any:
    """Wait for a job, however often it is put back into the queue, and give what it returned."""
    failed_job, uncompleted = (_of("submitit.core.utils", f"{kind}JobError") for kind in ("Failed", "Uncompleted"))
    try:
        return job.results()[0]
    except failed_job as error:
        lines = [line for line in str(error).splitlines() if line and not line.startswith(("-", " ", "You can"))]
        return failed(overrides, RuntimeError(f"job {job.job_id}: {lines[-1]}; its log: {job.paths.stderr}"))
    except uncompleted:
        return lost(overrides, f"job {job.job_id} ended as {job.state}; its log: {job.paths.stderr}")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


# --- Ray --------------------------------------------------------------------------------------------------------------


def on_ray(launcher: Any, points: Sequence[Sequence[str]], first: int) -> list[Any]:
    """Do points as tasks of a Ray cluster, which itself tries those again whose worker or node died."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from hydra.core.singleton import Singleton
    from hydra.core.utils import setup_globals

    submit = _of("hydra_plugins.hydra_ray_launcher._launcher_util", "launch_job_on_ray")
    get, errors = _of("ray", "get"), importlib.import_module("ray.exceptions")
    setup_globals()
    _of("hydra_plugins.hydra_ray_launcher._launcher_util", "start_ray")(launcher.ray.init)
    tasks = []
    for number, overrides in enumerate(points):
        config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"job_id_for_{first + number}", first + number
        task = launcher.task_function
        state = Singleton.get_state()
        tasks.append(submit(launcher.hydra_context, launcher.ray.remote, config, task, state))
    found = []
    for task, overrides in zip(tasks, points, strict=True):
        try:
            found.append(get(task))
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            found.append(given_up(overrides, f"its workers died, as often as Ray tries again: {one_line(error)}"))
        except errors.RayError as error:
            found.append(failed(overrides, error))
    return found
