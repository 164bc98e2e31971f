"""Logger runs: one for each run and one for each sweep's report; opened, told where they belong, filled and closed."""

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from essential_sparsity.inputs import file_digest
from essential_sparsity.runs import Run, flatten, identity, read_json, write_json

log = logging.getLogger(__name__)

Maker = Callable[..., Any]
"""What opens a logger run: takes `save_dir`, a run folder or a report folder, and gives a Lightning Logger."""

IDS = "loggers.json"
"""Where a run folder keeps which logger runs are its own: a resumed run goes on in them."""

STEPS_PER_SPARSITY = 1000
"""Curves are logged against a step, as loggers know nothing else: step 500 is sparsity 0.5."""


# --- one run ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(makers: Iterable[Maker], run: Run) -> Iterator[list[Any]]:
    """Open the loggers of a run that has begun, and close each when the block ends, well or not.

    A finished run's numbers are logged as `run/…` before. A logger that cannot be opened ends the run at once; one
    that fails later is told in a warning, for the run itself is done.
    """
    loggers: list[tuple[Maker, Any]] = []
    config = {_tag(key): value for key, value in flatten(identity(run.info["config"])).items()}
    status = "failed"
    try:
        for maker in makers:
            loggers.append((maker, maker(save_dir=run.path)))
            loggers[-1][1].log_hyperparams(config)
        yield [logger for _, logger in loggers]
        for maker, logger in loggers if run.finished else ():
            _attempt(_log_result, maker, logger, run.metrics, config)
        status = "success"
    finally:
        for maker, logger in loggers:
            _attempt(_close, maker, logger, status)


def log_finished(makers: Iterable[Maker], run: Run) -> None:
    """Log a run that was evaluated without training: its configuration and its numbers."""
    with opened(makers, run):
        pass


def _log_result(maker: Maker, logger: Any, metrics: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    told = {key.removeprefix("metrics."): value for key, value in flatten(metrics).items()}
    numbers = {f"run/{_tag(key)}": value for key, value in told.items() if _is_number(value)}
    logger.log_metrics(numbers, step=int(metrics.get("steps") or 0))
    result = getattr(maker, "result", None)
    if result is not None:
        result(logger, config, numbers)


def _close(maker: Maker, logger: Any, status: str) -> None:
    logger.finalize(status)
    close = getattr(maker, "close", None)
    if close is not None:
        close(logger, status)


def _attempt(step: Callable[..., None], maker: Maker, logger: Any, *arguments: Any) -> None:
    """Do what must not take a finished run down: a logger's failure is a warning."""
    try:
        step(maker, logger, *arguments)
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        log.warning("%s: not everything was logged: %s", type(logger).__name__, line)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tag(name: str) -> str:
    """Spell a name as every logger takes it."""
    return re.sub(r"[^A-Za-z0-9_/. -]+", "_", name).strip("_ ") or "all"


def place(save_dir: Path | str) -> tuple[str, str]:
    """Give the sweep and the run that a folder belongs to: `outputs/demo/seed=0~1a2b/` is run `seed=0~1a2b` of demo."""
    folder = Path(save_dir)
    if folder.parent.name == "parents":
        return folder.parents[1].name, f"parents/{folder.name}"
    return folder.parent.name, folder.name


def _needs(choice: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"logger={choice} needs {package}, an extra: pip install 'essential-sparsity[loggers]'")


def _remembered(save_dir: Path, logger: str) -> str | None:
    path = save_dir / IDS
    return read_json(path).get(logger) if path.is_file() else None


def _remember(save_dir: Path, **known: str) -> None:
    path = save_dir / IDS
    write_json(path, {**(read_json(path) if path.is_file() else {}), **known})


# --- one sweep --------------------------------------------------------------------------------------------------------


def log_report(makers: Iterable[Maker], folder: Path) -> None:
    """Log a sweep's report as a logger run of its own: curves against sparsity, essential points, figures.

    A report that was logged already, and did not change, is not logged again. Makers without `report` (CSV: the
    report's own curves.csv is one) are passed over.
    """
    report = folder / "report"
    if not (report / "curves.csv").is_file():
        return
    digest = file_digest(report / "curves.csv") + file_digest(report / "essential_sparsity.json")
    for maker in makers:
        own = f"{type(maker).__name__}.report"
        if not hasattr(maker, "report") or _remembered(report, own) == digest:
            continue
        logger = maker(save_dir=report)
        _attempt(_log_one_report, maker, logger, report)
        _attempt(_close, maker, logger, "success")
        _remember(report, **{own: digest})


def _log_one_report(maker: Any, logger: Any, report: Path) -> None:
    maker.report(logger, report, Curves.read(report))


@dataclass(frozen=True)
class Curves:
    """A report's tables: `curves` as curves.csv, `points` as essential_sparsity.json, `figures` its PNG files."""

    curves: Any
    points: list[dict[str, Any]]
    figures: list[Path]

    @classmethod
    def read(cls, report: Path) -> "Curves":
        """Read what `report` wrote."""
        import pandas as pd

        points = json.loads((report / "essential_sparsity.json").read_text())
        return cls(pd.read_csv(report / "curves.csv"), points, sorted((report / "figures").rglob("*.png")))

    def log(self, logger: Any) -> None:
        """Log curves, seeds averaged, as `curve/<curve>/<split>`, points as `essential_sparsity/<curve>/<split>`."""
        means = self.curves.groupby(["curve", "split", "sparsity"], dropna=False)["value"].mean().dropna()
        for (curve, split, sparsity), value in means.items():
            name = f"curve/{_tag(str(curve))}/{_tag(str(split))}"
            logger.log_metrics({name: float(value)}, step=round(STEPS_PER_SPARSITY * float(sparsity)))
        for point in self.points:
            name = f"{_tag(str(point['label']))}/{_tag(str(point['split']))}"
            kinds = ("essential_sparsity", "ci_low", "ci_high", "free_up_to", "costly_from")
            found = {f"{kind}/{name}": float(point[kind]) for kind in kinds if _is_number(point.get(kind))}
            if found:
                logger.log_metrics(found, step=0)

    def statements(self) -> list[tuple[str, str]]:
        """Give curve → where its essential sparsity lies, in words."""
        return [(f"{point['label']} ({point['split']})", _statement(point)) for point in self.points]


def _statement(point: Mapping[str, Any]) -> str:
    value, low, high = (point.get(key) for key in ("essential_sparsity", "ci_low", "ci_high"))
    words = str(point["status"]).replace("_", " ")
    if value is None:
        return words
    return f"{words}: {value:.3f}" + (f", 95 % interval {low:.3f} to {high:.3f}" if None not in (low, high) else "")


# --- the three that we know -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorBoard:
    """Event files in the folder itself, `tensorboard/`: `tensorboard --logdir outputs` shows runs by their folders."""

    def __post_init__(self) -> None:
        _needs("tensorboard", "tensorboard")

    def __call__(self, *, save_dir: Path) -> Any:
        """Open the event file of a folder."""
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(save_dir=save_dir, name="tensorboard", version="", default_hp_metric=False)

    def result(self, logger: Any, config: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        """Put the run into the table of hyperparameters, with its value."""
        logger.log_hyperparams(dict(config), {"run/value": numbers.get("run/value", float("nan"))})

    def report(self, logger: Any, report: Path, found: Curves) -> None:
        """Write curves, figures and a table of the essential points; an older report's go."""
        import numpy as np
        from PIL import Image

        shutil.rmtree(logger.log_dir, ignore_errors=True)
        found.log(logger)
        lines = [f"| {name} | {words} |" for name, words in found.statements()]
        table = "\n".join(["| curve | essential sparsity |", "|---|---|", *lines])
        logger.experiment.add_text("essential_sparsity", table)
        for path in found.figures:
            with Image.open(path) as picture:
                logger.experiment.add_image(path.stem, np.asarray(picture.convert("RGB")), dataformats="HWC")


@dataclass(frozen=True)
class WeightsAndBiases:
    """Runs of one W&B project, the sweep as their group; `offline` keeps them in `wandb/` of the run folder."""

    project: str = "essential_sparsity"
    offline: bool = False

    def __post_init__(self) -> None:
        _needs("wandb", "wandb")

    def __call__(self, *, save_dir: Path) -> Any:
        """Open a W&B run, or the one that the run folder had before; ValueError where W&B lets nobody in."""
        from pytorch_lightning.loggers import WandbLogger

        (sweep, name), save_dir = place(save_dir), Path(save_dir)
        offline = self.offline or os.environ.get("WANDB_MODE") in ("offline", "dryrun")
        own = _remembered(save_dir, "wandb") or secrets.token_hex(4)
        logger = WandbLogger(
            project=self.project, group=sweep, name=name, id=own, save_dir=save_dir, dir=save_dir,
            mode="offline" if offline else None, resume=None if offline else "allow",
            settings=importlib.import_module("wandb").Settings(silent=True, console="off"),
        )  # fmt: skip
        try:
            _ = logger.experiment
        except Exception as error:
            line = " ".join(str(error).split())
            raise ValueError(f"logger=wandb: {line}: run `wandb login`, or add logger.wandb.offline=true") from error
        if (save_dir / "run.json").is_file():
            _remember(save_dir, wandb=own)
        return logger

    def report(self, logger: Any, report: Path, found: Curves) -> None:
        """Log curves, a table of them, one of the essential points, and the figures."""
        found.log(logger)
        logger.log_table("curves", dataframe=found.curves)
        logger.log_table("essential_sparsity", ["curve", "statement"], [list(each) for each in found.statements()])
        for path in found.figures:
            logger.log_image(f"figures/{path.stem}", [str(path)])

    def close(self, logger: Any, status: str) -> None:
        """End the W&B run, so that the next point begins one of its own."""
        logger.experiment.finish(exit_code=0 if status == "success" else 1)


@dataclass(frozen=True)
class MLflow:
    """Runs of one MLflow experiment a sweep, in `tracking_uri`; null: $MLFLOW_TRACKING_URI, else outputs/mlflow.db."""

    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        _needs("mlflow", "mlflow")

    def __call__(self, *, save_dir: Path) -> Any:
        """Open an MLflow run, or the one that the run folder had before."""
        from pytorch_lightning.loggers import MLFlowLogger

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        sweep, name = place(save_dir)
        folder = next(each for each in Path(save_dir).resolve().parents if each.name == sweep)
        asked = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        uri = asked or f"sqlite:///{folder.parent / 'mlflow.db'}"
        with Run(folder.parent / ".mlflow").lock(wait=True):  # two that create one store end in an error
            run_id = _mlflow_run(uri, sweep, name, Path(save_dir), None if asked else (folder / "mlflow").as_uri())
        return MLFlowLogger(tracking_uri=uri, run_id=run_id)

    def report(self, logger: Any, report: Path, found: Curves) -> None:
        """Log curves, the essential points as metrics and as tags, and the report's files."""
        found.log(logger)
        for name, words in found.statements():
            logger.experiment.set_tag(logger.run_id, _tag(name), words)
        for path in (report / "curves.csv", report / "essential_sparsity.json", *found.figures):
            logger.experiment.log_artifact(logger.run_id, str(path), "figures" if path in found.figures else None)


def _mlflow_run(uri: str, sweep: str, name: str, save_dir: Path, artifacts: str | None) -> str:
    """Give the MLflow run of a folder, open: the one it had before, if that is still there, else a new one."""
    mlflow = importlib.import_module("mlflow")
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(sweep)
    at = experiment.experiment_id if experiment else client.create_experiment(sweep, artifact_location=artifacts)
    own = _remembered(save_dir, "mlflow")
    if own is not None:
        try:
            client.update_run(own, status="RUNNING")
        except mlflow.MlflowException:  # another store, or one that was cleared
            own = None
        else:
            return own
    own = client.create_run(at, run_name=name, tags={"sweep": sweep, "folder": str(save_dir)}).info.run_id
    if (save_dir / "run.json").is_file():
        _remember(save_dir, mlflow=own)
    return own
