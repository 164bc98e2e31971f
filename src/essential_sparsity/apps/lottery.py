"""essential-sparsity lottery: rounds of training, pruning and rewinding, then the ticket: `train` by its defaults."""

from essential_sparsity.apps import conf
from essential_sparsity.apps.train import job


def main() -> None:
    """Run the app."""
    conf.start("lottery", job)
