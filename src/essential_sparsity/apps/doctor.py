"""essential-sparsity doctor: is this machine ready? One line a finding, its remedy beside; exit code 1 on an error."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from omegaconf import DictConfig

STATES = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """What one check found: `state` is ok, warning (works, but see the remedy) or error (does not work)."""

    check: str
    state: str
    text: str
    remedy: str = ""


Check = Callable[[], Iterable[Finding]]


def diagnose(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """Do all checks; one that cannot be done is a warning that says so, and the others go on."""
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            findings.append(Finding(name, "warning", f"could not be checked ({line})", "report this as a bug"))
    return findings


def show(findings: Sequence[Finding]) -> None:
    """Print one line per finding and a sum."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for each in findings:
        line = Text.assemble((f"{each.state:8}", STATES[each.state]), (f"{each.check:10}", "bold"), each.text)
        if each.remedy:
            line.append(f" → {each.remedy}", style=STATES[each.state])
        console.print(line, soft_wrap=True)
    console.print(summary(findings), soft_wrap=True)


def summary(findings: Sequence[Finding]) -> str:
    """Say in one line how it stands, and what to do next."""
    errors, warnings = (sum(each.state == state for each in findings) for state in ("error", "warning"))
    if errors:
        return f"{errors} errors, {warnings} warnings: mend the errors first"
    ready = "ready" if not warnings else f"ready, {warnings} warnings"
    return f"{ready}: essential-sparsity train experiment=demo"


def job(composed: DictConfig) -> None:
    """Examine this machine; called by Hydra."""
    from essential_sparsity.apps.checks import checks

    findings = diagnose(checks(composed.paths, timeout=float(composed.timeout)))
    errors = sum(each.state == "error" for each in findings)
    if composed.json:
        warnings = sum(each.state == "warning" for each in findings)
        told = {"errors": errors, "warnings": warnings, "findings": [asdict(each) for each in findings]}
        print(json.dumps(told, indent=1))
    else:
        show(findings)
    if errors:
        sys.exit(1)


def main() -> None:
    """Run the app; `--json` is another spelling of json=true."""
    from essential_sparsity.apps import conf

    sys.argv = ["json=true" if word == "--json" else word for word in sys.argv]
    conf.start("doctor", job)
