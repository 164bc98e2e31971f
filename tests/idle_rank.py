"""A rank that does nothing but what a test asks of it: stands in for essential_sparsity.apps.rank."""

import os
import signal
import sys
import time
from pathlib import Path

from essential_sparsity import ranks
from essential_sparsity.runs import Run


def main() -> None:
    ranks.end_with_parent()
    run, rank = Run(Path(sys.argv[1])), int(os.environ["RANK"])
    asked, _ = ranks.asked_of(run)
    own = ranks.rank_run(run, rank)
    (run.path / f"pid{rank}").write_text(str(os.getpid()))
    match asked["does"][rank]:
        case "sleep":
            time.sleep(600)
        case "fail":
            own.fail(kind="ValueError", message="a bad value", traceback="Traceback of the rank", step=3)
            os._exit(1)
        case "lose a peer":
            time.sleep(0.5)
            own.fail(kind="RuntimeError", message="connection closed by peer", traceback="", step=None)
            os._exit(1)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            print("a last word")
            sys.stdout.flush()
            os._exit(7)
    os._exit(0)


if __name__ == "__main__":
    main()
