"""What the doctor looks at, in order; the checks of what is installed."""

import importlib.metadata
import importlib.util
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from essential_sparsity.apps import machine
from essential_sparsity.apps.doctor import Check, Finding
from essential_sparsity.provenance import PACKAGES

PACKAGE = "essential-sparsity"


def checks(paths: Mapping[str, Any], *, timeout: float) -> list[tuple[str, Check]]:
    """List the checks, by name, in the order in which they are shown; the hub is asked while the others go on."""
    asked = machine.HubQuestion(timeout)
    asked.start()
    outputs = Path(paths["outputs"])
    return [
        ("python", python),
        ("packages", packages),
        ("extras", extras),
        ("together", conflicts),
        ("conf", configuration),
        ("threads", machine.threads),
        ("memory", machine.memory),
        ("device", machine.devices),
        ("outputs", lambda: machine.folder("outputs", outputs)),
        ("temporary", lambda: machine.folder("temporary", Path(tempfile.gettempdir()))),
        ("inputs", lambda: machine.inputs(paths)),
        ("cache", machine.caches),
        ("hub", asked.answer),
    ]


# --- packages ---------------------------------------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    """Say which Python runs, and which of our versions."""
    text = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, in {sys.prefix}"
    if sys.flags.optimize:
        yield Finding("python", "warning", f"{text}: assertions are off", "unset PYTHONOPTIMIZE")
    else:
        yield Finding("python", "ok", text)


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or ()]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(requirement: Requirement) -> str | None:
    found = re.search(r'extra == "(\w+)"', str(requirement.marker or "").replace("'", '"'))
    return found.group(1) if found else None


def packages() -> Iterator[Finding]:
    """Compare what is installed with what pyproject.toml asks for."""
    there: dict[str, str] = {}
    for requirement in _requirements():
        if _extra(requirement):
            continue
        version, remedy = _version(requirement.name), f"pip install '{requirement.name}{requirement.specifier}'"
        if version is None:
            yield Finding("packages", "error", f"{requirement.name} is missing", remedy)
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is here, {requirement.specifier} is needed"
            yield Finding("packages", "error", text, remedy)
        else:
            there[requirement.name] = version
    shown = [f"{name} {there[name]}" for name in PACKAGES if name in there]
    yield Finding("packages", "ok", f"{', '.join(shown)} and {len(there) - len(shown)} more are as asked")


def extras() -> Iterator[Finding]:
    """Say which extras are there: they are optional, so none is missing."""
    names: dict[str, list[str]] = {}
    for requirement in _requirements():
        extra = _extra(requirement)
        if extra and extra != "dev" and requirement.name != PACKAGE:
            names.setdefault(extra, []).append(requirement.name)
    told = []
    for extra, wanted in names.items():
        there = [name for name in wanted if _version(name)]
        told.append(f"{extra} ({', '.join(there) or 'none'})")
    yield Finding("extras", "ok", f"{'; '.join(told)}: more by pip install '{PACKAGE}[NAME]'")


def conflicts() -> Iterator[Finding]:
    """Find installed packages, of those that we use and they use, that do not go together."""
    bad = list(_conflicts(tuple(_requirements())))
    for owner, requirement, version in bad:
        text = f"{owner} {_version(owner)} asks for {requirement.name}{requirement.specifier}, {version} is here"
        yield Finding("together", "warning", text, f"pip install '{requirement.name}{requirement.specifier}'")
    if not bad:
        yield Finding("together", "ok", "no two installed packages contradict each other")


def _conflicts(roots: Sequence[Requirement]) -> Iterator[tuple[str, Requirement, str]]:
    """Walk from our requirements down; yield (who asks, for what, what is here)."""
    todo, seen = [requirement.name for requirement in roots], {PACKAGE}
    while todo:
        owner = todo.pop().lower()
        if owner in seen or _version(owner) is None:
            continue
        seen.add(owner)
        for line in importlib.metadata.requires(owner) or ():
            requirement = Requirement(line)
            version = _version(requirement.name)
            if version is None or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                yield owner, requirement, version
            todo.append(requirement.name)


def configuration() -> Iterator[Finding]:
    """Say which YAML files are read: a stale copy, or ./conf of this folder, surprises."""
    from essential_sparsity.apps.conf import CONF

    source = Path(__file__).resolve().parents[3] / "conf"
    if importlib.util.find_spec("hydra_plugins.essential_sparsity") is None:
        remedy = f"pip install --force-reinstall --no-deps {PACKAGE}"
        yield Finding("conf", "error", "our Hydra plugins (sweepers, ./conf) are not installed", remedy)
    if source.is_dir() and source != CONF and (source / "train.yaml").is_file():
        text = f"{CONF} is read, a copy; {source} is not"
        yield Finding("conf", "warning", text, f"remove {CONF}, or install again")
        return
    own = Path.cwd() / "conf"
    first = f"{own}, then " if own.is_dir() and own.resolve() != CONF.resolve() else ""
    yield Finding("conf", "ok", f"{first}{CONF}")
