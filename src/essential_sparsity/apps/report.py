"""essential-sparsity report: runs to curves, essential sparsity, figures and one page."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def job(composed: DictConfig) -> None:
    """Report on one name."""
    folder = Path(composed.paths.outputs) / composed.name
    if not folder.is_dir():
        from essential_sparsity.apps.errors import nearest

        outputs = Path(composed.paths.outputs)
        names = sorted(path.name for path in outputs.iterdir() if path.is_dir()) if outputs.is_dir() else []
        raise ValueError(f"name={composed.name}: there are no runs in {folder}{nearest(str(composed.name), names)}")
    report_folder(folder, epsilon=composed.report.epsilon, rho=composed.report.rho)


def report_folder(folder: Path, *, epsilon: float | None = None, rho: float | None = None) -> list[dict[str, Any]]:
    """Write a folder's report and print where the essential sparsity lies."""
    from essential_sparsity.apps.distributions import measure_arms, report_models
    from essential_sparsity.apps.similarities import compare_masks
    from essential_sparsity.report import write_report
    from essential_sparsity.report.tables import terminal_table

    if report_models(folder):
        print(f"report: {folder / 'report' / 'index.html'}")
        return []
    measure_arms(folder)
    compare_masks(folder)
    results = write_report(folder, epsilon=epsilon, rho=rho)
    print(terminal_table(results))
    print(f"report: {folder / 'report' / 'index.html'}")
    return results


def main() -> None:
    """Run the app."""
    from essential_sparsity.apps import conf

    conf.start("report", job)
