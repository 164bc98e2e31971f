"""The search for the turn as rounds of runs: what the sweeper of this name does between Hydra and the analysis."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from essential_sparsity.apps import sweeps
from essential_sparsity.apps.guard import Outcome
from essential_sparsity.apps.needs import Needs, refuse_all
from essential_sparsity.failures import one_line

AXES = ("sparsity", "sparsities")
OPTIONS = ("tolerance", "budget", "noise", "confidence", "batch_size")
GRIDS = ("grids", "params", "across", "max_batch_size")


@dataclass
class Searched:
    """One search: its settings, the overrides that all its runs share, and what its runs gave so far."""

    search: Any  # analysis.next_runs.Search
    overrides: list[str]
    names_seed: bool  # whether a run's overrides name its seed
    is_curve: bool  # evaluate: one job takes several sparsities of a seed
    epsilon: float | None
    values: dict[tuple[float, int], float] = field(default_factory=dict)
    lost: set[tuple[float, int]] = field(default_factory=set)
    paths: dict[tuple[float, int], str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # metric, num_rows
    label: str = ""  # what tells this search from the others of the sweep
    has_ended: bool = False

    def next_cells(self) -> list[tuple[float, int]]:
        """Choose the runs of the next round; none ends the search."""
        from essential_sparsity.analysis.metrics import metric_named
        from essential_sparsity.analysis.next_runs import next_runs
        from essential_sparsity.analysis.turning_point import grain_of

        if self.has_ended:
            return []
        settings = {"epsilon": self.epsilon or 0.01, "grain": 0.0}
        if self.facts:
            measure = metric_named(self.facts["metric"])
            settings = {"epsilon": self.epsilon or measure.epsilon}
            settings["grain"] = grain_of(measure, int(self.facts.get("num_rows") or 0))
        cells = next_runs(self.search, self.values, lost=self.lost, **settings)
        self.has_ended = not cells
        return cells

    def jobs(self, cells: Sequence[tuple[float, int]]) -> list[tuple[list[str], list[tuple[float, int]]]]:
        """Write cells as the overrides of jobs; evaluate takes all levels of one seed in one."""
        together: dict[Any, list[tuple[float, int]]] = {}
        for level, seed in cells:
            together.setdefault(seed if self.is_curve else (level, seed), []).append((level, seed))
        found = []
        for members in together.values():
            levels = ",".join(f"{level:g}" if level else "0.0" for level, _ in members)
            axis = f"sparsities=[{levels}]" if self.is_curve else f"sparsity={levels}"
            seed = [f"seed={members[0][1]}"] if self.names_seed else []
            found.append(([*self.overrides, axis, *seed], members))
        return found

    def take(self, cells: Sequence[tuple[float, int]], result: Any) -> None:
        """Keep what one job gave: values of finished runs, the cells of failed ones."""
        outcomes = [item for item in (result if isinstance(result, list) else [result]) if isinstance(item, Outcome)]
        if any(outcome.status == "planned" for outcome in outcomes):
            self.has_ended = True
            return
        done = [outcome for outcome in outcomes if outcome.status in ("finished", "there")]
        by_level = {round(float(item.metrics.get("sparsity_requested") or 0.0), 9): item for item in done}
        for level, seed in cells:
            outcome = by_level.get(round(level, 9))
            if outcome is None or outcome.metrics.get("value") is None:
                self.lost.add((level, seed))
                continue
            self.values[level, seed] = float(outcome.metrics["value"])
            self.paths[level, seed] = str(outcome.path)
            self.facts = {key: outcome.metrics.get(key) for key in ("metric", "num_rows")}

    def curve(self) -> Any:
        """Read the curve of this search's runs, from their folders; None where nothing has finished."""
        from essential_sparsity.analysis import curves_from_runs
        from essential_sparsity.runs import read_run

        curves = curves_from_runs([read_run(Path(path)) for path in dict.fromkeys(self.paths.values())])
        return max(curves, key=lambda curve: (curve.is_primary, len(curve.statistics)), default=None)


def refuse_beside(config: Any, aside: frozenset[str]) -> None:
    """Raise ValueError for a grid that was asked for beside the search, and for a misspelt option."""
    from essential_sparsity.inputs import suggest

    asked = [str(text) for text in config.hydra.overrides.hydra]
    for text in asked:
        key = text.lstrip("+~").partition("=")[0].removeprefix("hydra.sweeper.").partition(".")[0]
        if text.lstrip("+~").startswith("hydra.sweeper.") and key in GRIDS:
            raise ValueError(f"{text}: turning_point chooses its own levels; leave it out, or use hydra/sweeper=grids")
    for name in sorted(aside - set(GRIDS)):
        raise ValueError(f"hydra.sweeper.{name} is no option of turning_point{suggest(name, OPTIONS)}")


def searches(config: Any, points: Sequence[Sequence[str]], settings: Mapping[str, Any]) -> list[Searched]:
    """Make one search per combination of axes but the seed. Raises ValueError naming value, rule and remedy."""
    from essential_sparsity.analysis.next_runs import Search

    if not any(key in config for key in AXES):
        name = config.hydra.job.config_name
        raise ValueError(f"{name} sweeps over no sparsity: hydra/sweeper=turning_point is for train and evaluate")
    is_curve, grouped = "sparsities" in config, {}
    for point in points:
        keys = {text.lstrip("+~").partition("=")[0]: text for text in point}
        if grid := next((text for key, text in keys.items() if key in AXES), None):
            raise ValueError(f"{grid} beside hydra/sweeper=turning_point, which chooses the levels: leave it out")
        rest = tuple(text for text in point if text != keys.get("seed"))
        grouped.setdefault(rest, []).extend([keys["seed"]] if "seed" in keys else [])
    found = []
    for rest, named in grouped.items():
        seeds = _seeds(config, named, is_curve=is_curve)
        noisy = settings["noise"] if settings["noise"] is not None else not is_curve or len(seeds) > 1
        kept = {key: settings[key] for key in ("tolerance", "budget", "confidence", "batch_size")}
        search = Search(seeds=seeds, noisy=bool(noisy), **kept)
        report = config.get("report") or {}
        label = " ".join(text for text in rest if any(text not in other for other in grouped))
        names_seed = bool(named) or len(seeds) > 1
        found.append(Searched(search, list(rest), names_seed, is_curve, report.get("epsilon"), label=label))
    return found


def _seeds(config: Any, named: Sequence[str], *, is_curve: bool) -> tuple[int, ...]:
    """Give the seeds of every level: the command line's, else those of a training experiment's axis, else the one."""
    words = [text.partition("=")[2] for text in named]
    axes = config.get("axes") or {}
    if not words and not is_curve and axes.get("seed") is not None:
        words = str(axes["seed"]).split(",")
    try:
        seeds = [int(word) for word in words] or [int(config.get("seed", 0))]
    except ValueError:
        raise ValueError(f"seed={','.join(words)}: seeds are whole numbers, as in seed=0,1,2") from None
    return tuple(dict.fromkeys(seeds))


def run(
    config: Any,
    found: Sequence[Searched],
    *,
    launch: Callable[..., Sequence[Any]],
    load: Callable[..., Any],
) -> list[Any]:
    """Run all searches side by side, round by round, then turning_point.json, the sweep's table and the reports."""
    broken, needs = [], Needs()
    for each in found:
        try:
            needs.add(each.overrides, load(config, [*each.overrides]))
        except Exception as error:
            broken.append((each.overrides, error))
    refuse_all([each.overrides for each in found], refused := needs.fetch())
    broken += refused
    for each in found:
        each.has_ended = any(each.overrides == point for point, _ in broken)
    going = [each for each in found if not each.has_ended]
    sweeps.begin(config, num_points=sum(each.search.limit for each in going), broken=broken)
    returns: list[Any] = []
    while jobs := [(each, job) for each in going for job in each.jobs(each.next_cells())]:
        done = launch([overrides for _, (overrides, _) in jobs], initial_job_idx=len(returns))
        first = not returns
        returns += done
        for (each, (_, cells)), returned in zip(jobs, done, strict=True):
            each.take(cells, returned.return_value)
        if first:
            _end_at_chance(going)
    conclude([each for each in going if each.paths])  # first: the report shows what it writes
    sweeps.conclude(config, [job.return_value for job in returns])
    return returns


def _end_at_chance(going: Sequence[Searched]) -> None:
    """End the searches whose dense runs only guess: no level could cost them anything."""
    from essential_sparsity.analysis.turning_point import at_chance

    for each in going:
        if each.paths and (curve := each.curve()) is not None:
            each.has_ended = each.has_ended or at_chance(curve)


def conclude(found: Sequence[Searched]) -> None:
    """Print where the turns lie, and write them to report/turning_point.json of each folder of runs."""
    from essential_sparsity.analysis.turning_point import locate_turning_point, table_of
    from essential_sparsity.report.tables import plain_table
    from essential_sparsity.runs import write_json

    by_folder: dict[Path, list[dict[str, Any]]] = {}
    for each in found:
        folder = Path(next(iter(each.paths.values()))).parent
        try:
            located = locate_turning_point(
                each.search, each.values, each.curve(), epsilon=each.epsilon, label=each.label, lost=each.lost
            )
        except ValueError as error:
            print(f"{each.label or 'turning point'}: {one_line(error)}")
            continue
        by_folder.setdefault(folder, []).append({**located.to_dict(), "overrides": each.overrides})
        header, lines = table_of(located)
        print(plain_table(header, lines, num_words=2))
        print(located.statement)
    for folder, entries in by_folder.items():
        write_json(folder / "report" / "turning_point.json", entries)
        print(f"turning point: {folder / 'report' / 'turning_point.json'}")
