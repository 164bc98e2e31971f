"""Masks by name: where they lie, which run chose them, and the shortest label that tells them from the others."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from essential_sparsity.analysis.grouping import varying_keys
from essential_sparsity.pruning import Masks
from essential_sparsity.runs import read_run

MASKS_FILE = "masks.safetensors"
LARGEST_COMPARISON = 100
"""Masks that one comparison takes: 4,950 pairs."""

FIRST_TOLD = ("pruner", "sparsity", "seed")


@dataclass(frozen=True, eq=False)
class NamedMasks:
    """Masks, where they lie, and what tells them from the others: pruner, sparsity, and the keys of their place."""

    masks: Masks
    path: Path
    pruner: str
    place: Mapping[str, Any]  # seed, data.subset, …: None where the masks do not depend on it
    label: str = ""
    copies: int = 1  # runs that hold these very masks

    @property
    def chosen_by(self) -> str:
        """Score, allocation and pattern that chose the masks."""
        return parts_in_words(self.masks.score, self.masks.allocation, self.masks.pattern)

    @property
    def level(self) -> Fraction:
        """Sparsity that was asked for, or the measured one."""
        asked = self.masks.requested
        return asked if asked is not None else Fraction(self.masks.num_pruned, self.masks.num_prunable)

    def differs_from(self, other: "NamedMasks") -> list[str]:
        """Name what sets two masks apart: pruner, sparsity, seed, data, …; keys that one of them lacks do not."""
        keys = [key for key in self.place if key in other.place]
        apart = [root_of(key) for key in keys if differ(self.place[key], other.place[key])]
        apart += ["pruner"] if self.pruner != other.pruner else []
        apart += ["sparsity"] if self.level != other.level else []
        return sorted(set(apart), key=lambda name: (*(name != first for first in FIRST_TOLD), name))


def read_masks(entries: Iterable[Path | str]) -> list[NamedMasks]:
    """Read masks files, run folders, folders of runs and glob patterns, each with a label of its own.

    Masks of one pruner and sparsity that several runs share bit for bit count once (one-shot masks depend neither on
    the seed nor on the task). Errors: FileNotFoundError for a path that is not there, ValueError for one that holds no
    masks, for fewer than two masks and for more than 100.
    """
    paths = list(dict.fromkeys(path.resolve() for entry in entries for path in _masks_files(str(entry))))
    if len(paths) < 2:
        named = f"only {paths[0]}" if paths else "nothing"
        raise ValueError(f"masks names {named}: a comparison takes two masks or more, as masks=[a,b]")
    if len(paths) > LARGEST_COMPARISON:
        raise ValueError(f"masks names {len(paths)} files: compare at most {LARGEST_COMPARISON} at a time")
    found = _with_places([Masks.load(path) for path in paths], paths)
    once = _counted_once(found)
    return _labelled(once if len(once) > 1 else found)


def _masks_files(entry: str) -> list[Path]:
    """Find the masks that an entry means."""
    path = Path(entry).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        own = path / MASKS_FILE
        inside = [own] if own.is_file() else sorted(path.glob(f"*/{MASKS_FILE}"))
        if not inside:
            raise ValueError(f"{path} holds no {MASKS_FILE}: give a masks file, a finished run or a folder of runs")
        return inside
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not matches:
        raise FileNotFoundError(f"masks {entry} is not there: give a masks file, a run folder or a pattern that fits")
    files = [match / MASKS_FILE if match.is_dir() else match for match in matches]
    files = [file for file in files if file.is_file() and file.suffix == ".safetensors"]
    if not files:
        raise ValueError(f"none of the {len(matches)} matches of {entry} holds masks: give runs or masks files")
    return files


def _with_places(masks: Sequence[Masks], paths: Sequence[Path]) -> list[NamedMasks]:
    """Say of each masks file what its run's configuration, where there is one, says of it."""
    records = {p: read_run(p.parent) for p in paths if p.name == MASKS_FILE and (p.parent / "run.json").is_file()}
    keys = dict(zip(records, varying_keys(list(records.values())), strict=True))
    found = []
    for each, path in zip(masks, paths, strict=True):
        pruner, place = parts_in_words(each.score, each.allocation, each.pattern), {"file": str(path)}
        if path in records:
            place = {"seed": records[path].config.get("seed"), **keys[path]}
            pruner = str(place.pop("pruner"))
        found.append(NamedMasks(each, path, pruner, place))
    return found


def _counted_once(found: Sequence[NamedMasks]) -> list[NamedMasks]:
    """Merge runs' masks of one pruner and sparsity that are equal; keys in which they differ no longer place them."""
    same: dict[Any, list[NamedMasks]] = defaultdict(list)
    for each in found:
        of_a_file = str(each.path) if "file" in each.place else ""
        same[each.pruner, each.level, each.masks.digest(), of_a_file].append(each)
    merged = []
    for group in same.values():
        first = group[0].place
        place = {k: v if all(each.place.get(k) == v for each in group) else None for k, v in first.items()}
        merged.append(replace(group[0], place=place, copies=len(group)))
    return merged


def _labelled(found: Sequence[NamedMasks]) -> list[NamedMasks]:
    """Label masks by pruner and sparsity, then by the keys that are needed to tell all of them apart."""
    alike: dict[tuple[str, Fraction], list[NamedMasks]] = defaultdict(list)
    for each in found:
        alike[each.pruner, each.level].append(each)
    needed: set[str] = set()
    for group in alike.values():
        for key in sorted({key for each in group for key in each.place}, key=lambda key: (key != "seed", key)):
            told = {tuple(str(each.place.get(k)) for k in needed) for each in group}
            more = {(*(str(each.place.get(k)) for k in needed), str(each.place.get(key))) for each in group}
            needed |= {key} if len(more) > len(told) else set()
    labelled = [replace(each, label=_label(each, needed)) for each in found]
    labels = [each.label for each in labelled]
    clashing = [each.path for each in labelled if labels.count(each.label) > 1]
    tails = _shortest_tails([path.parent if path.name == MASKS_FILE else path for path in clashing])
    names = dict(zip(clashing, tails, strict=True))
    return [replace(e, label=f"{e.label} ({names[e.path]})") if e.path in names else e for e in labelled]


def _shortest_tails(paths: Sequence[Path]) -> list[str]:
    """Give as many last parts of each path as tell all of them apart."""
    longest = max((len(path.parts) for path in paths), default=0)
    every = ([str(Path(*path.parts[-length:])) for path in paths] for length in range(1, longest + 1))
    return next((tails for tails in every if len(set(tails)) == len(tails)), [str(path) for path in paths])


def _label(named: NamedMasks, needed: Collection[str]) -> str:
    if "file" in named.place:
        return f"{_file_name(named.path)} at {float(named.level):.4g}"
    place = place_words({key: value for key, value in named.place.items() if key in needed})
    return f"{named.pruner} at {float(named.level):.4g}" + (f", {place}" if place else "")


def parts_in_words(score: str, allocation: str, pattern: str) -> str:
    """Name a pruner by its parts."""
    return f"{score} × {allocation} × {pattern}"


def place_words(place: Mapping[str, Any]) -> str:
    """Put a place into words: `seed 0, subset rte`; what the masks do not depend on is left out."""
    told = [(key.rsplit(".", 1)[-1], value) for key, value in place.items() if value is not None]
    return ", ".join(f"{key} {str(value).rsplit('/', 1)[-1]}" for key, value in told)


def _file_name(path: Path) -> str:
    return path.parent.name if path.name == MASKS_FILE else path.stem


def root_of(key: str) -> str:
    """Give the node that a key belongs to, parents' as the run's own: `parent.data.subset` is data."""
    while key.startswith("parent."):
        key = key.removeprefix("parent.")
    return "seed" if key.endswith(".seed") else key.split(".")[0]


def differ(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one != other
