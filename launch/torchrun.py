"""torchrun with one line for a failure: `python -m launch.torchrun ...`, run by `launch local`.

torchrun itself ends with a traceback and a table of its own after what the ranks said.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def run(arguments: list[str]) -> None:
    """Runs torchrun; exit status 1 if a rank failed. All of torchrun's options are allowed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
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


if __name__ == "__main__":
    run(sys.argv[1:])
