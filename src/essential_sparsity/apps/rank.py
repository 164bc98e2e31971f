"""One rank of a run on several devices: started by `essential-sparsity train`, never by hand."""

import os
import sys
from pathlib import Path

from essential_sparsity import ranks
from essential_sparsity.apps import conf, train
from essential_sparsity.failures import write_failure
from essential_sparsity.runs import Run


def work(run: Run) -> None:
    """Train what was asked of a run's ranks, from the configuration that lies in its folder."""
    asked, place = ranks.asked_of(run)
    from essential_sparsity.training import fit_rank

    conf.quiet_lightning()
    arguments = train.stage_at(conf.Asked(**asked["asked"]), asked["depth"])
    del arguments["launch"]
    fit_rank(**{**arguments, "run": run, "keep": asked["keep"]}, place=place)


def main() -> None:
    """Run the rank that RANK names; leaves failure.json in its own folder where it fails."""
    ranks.end_with_parent()
    run = Run(Path(sys.argv[1]))
    own, code = ranks.rank_run(run, int(os.environ["RANK"])), 0
    with own.lock(wait=True):  # a rank of an earlier start may still be on its way out
        try:
            work(run)
        except BaseException as error:  # SystemExit, too: whoever waits for this rank is told why
            write_failure(own, error)
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: what waits for other ranks in the background must not hold this one up


if __name__ == "__main__":
    main()
