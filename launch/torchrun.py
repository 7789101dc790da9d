"""torchrun with one line for a failure or a stop: `python -m launch.torchrun ...`.

Run by `launch local`, and in place of torchrun on each of several nodes.

torchrun itself ends with a traceback and a table of its own after what the ranks said. Asked to
stop, it would kill them after thirty seconds, and could not tell that they have saved; here the
signals are handed to the ranks, which save and end with a status of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import determine_local_world_size, main, parse_args

from hnpretrain.train.stopping import EXIT_STATUS, SIGNALS


def run(arguments: list[str]) -> int:
    """Runs torchrun, with any of its options but restarts of its own.

    Each rank gets an equal part of the cores, unless OMP_NUM_THREADS says otherwise.

    Returns:
        The exit status: 75 if the ranks were asked to stop, and saved; 1 if a rank failed; 128 + N,
        as shells count, if signal N ended them; 2 if torchrun was to restart them.
    """
    options = parse_args(arguments)
    if options.max_restarts:
        # To torchrun, ranks that were asked to stop and have saved are ranks that have failed.
        print(
            f"error: --max_restarts={options.max_restarts} would start a run again that was asked "
            "to stop; leave it out, and give the same command again: it goes on from the last "
            "checkpoint",
            file=sys.stderr,
        )
        return 2
    ranks = determine_local_world_size(options.nproc_per_node)
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    logging.disable(logging.ERROR)  # of this process alone, which only looks after the ranks
    hand_on = _HandOn()
    for number in SIGNALS:
        signal.signal(number, hand_on)
    try:
        main(["--signals-to-handle=SIGINT,SIGHUP,SIGQUIT", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == EXIT_STATUS:
            return EXIT_STATUS
        if -failure.exitcode in SIGNALS:
            return _stopped(-failure.exitcode)
        if failure.exitcode < 0:  # by a signal: the rank could not say why
            print(
                f"error: rank {rank} was ended by {failure.signal_name()} (where it is SIGKILL, "
                "most often memory ran out); the same command goes on from the last checkpoint",
                file=sys.stderr,
            )
        return 1
    except SignalException as error:
        return _stopped(error.sigval)
    return 0


class _HandOn:
    """Sends a signal on to the ranks, which are this process's children; ends if there are none.

    That is while torchrun waits for other nodes. But ranks that had a signal before are gone since
    they have saved, and torchrun is about to end with their status.
    """

    def __init__(self) -> None:
        self._is_handed_on = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        files = Path("/proc/self/task").glob("*/children")
        ranks = [int(child) for children in files for child in children.read_text().split()]
        if not ranks and not self._is_handed_on:
            sys.exit(_stopped(number))
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)
        self._is_handed_on = True


def _stopped(number: int) -> int:
    print("stopped: the same command goes on from the last checkpoint", file=sys.stderr)
    return 128 + number


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
