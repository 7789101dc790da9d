"""torchrun with one line for a failure or a stop: `python -m launch.torchrun ...`.

Run by `launch local`.

torchrun itself ends with a traceback and a table of its own after what the ranks said.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def run(arguments: list[str]) -> None:
    """Runs torchrun, with any of its options.

    Exit status 1 if a rank failed; 128 + N, as shells count, if signal N stopped it.
    """
    logging.disable(logging.ERROR)  # of this process alone, which only looks after the ranks
    try:
        main(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # by a signal: the rank could not say why
            print(
                f"error: rank {rank} was ended by {failure.signal_name()} (where it is SIGKILL, "
                "most often memory ran out); the same command goes on from the last checkpoint",
                file=sys.stderr,
            )
        sys.exit(1)
    except SignalException as error:
        print("stopped: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    run(sys.argv[1:])
