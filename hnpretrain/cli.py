"""The `hnpretrain` command: mounts each package's own commands.

The `commands` modules import nothing heavy at their top, so `--help` answers at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable

import typer

import launch.commands
import shard_tools.bench.commands
import shard_tools.commands
from hnpretrain.bench import commands as benches
from hnpretrain.demo import commands as demo
from hnpretrain.eval import commands as evaluation
from hnpretrain.inpaint import commands as inpainting
from hnpretrain.train import commands as training
from hnpretrain.worlds import commands as worlds

# Seconds: enough for rank 0 to say it and end, and for torchrun to see that.
_OTHER_RANKS_WAIT = 15.0

app = typer.Typer(
    name="hnpretrain",
    help="Pretrain CLIP-style models on hard negatives.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.add_typer(worlds.app, name="world")
app.add_typer(shard_tools.commands.app, name="shard")
bench = typer.Typer(help="Speed and quality beside what else one would use.", no_args_is_help=True)
bench.command("negatives")(shard_tools.bench.commands.negatives)
bench.command("loss")(benches.loss)
bench.command("text")(benches.text)
bench.command("step")(benches.step)
bench.command("loader")(benches.loader)
app.add_typer(bench, name="bench")
app.command("plan")(training.plan)
app.command("train")(training.train)
app.add_typer(training.checkpoint_app, name="checkpoint")
app.add_typer(launch.commands.app, name="launch")
app.add_typer(inpainting.app, name="inpaint")
app.add_typer(evaluation.app, name="eval")
app.command("export")(training.export)


def main() -> None:
    """Runs the command line; exit status 0 done, 1 failed, 2 wrong use.

    75: a training was asked to stop, and saved (train/stopping.py).
    """
    _exit_with_one_line(app)


def run_command(command: Callable[..., None]) -> None:
    """Runs one command as a program of its own (`python -m hnpretrain.train`)."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(command)
    _exit_with_one_line(program)


def _exit_with_one_line(program: typer.Typer) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # files and pipes, as of jobs, get whole lines
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    try:
        program()
    except (ValueError, OSError) as error:
        prefix = ""
        if os.environ.get("WORLD_SIZE", "1") != "1":
            rank = os.environ.get("RANK", "0")
            prefix = f"[rank {rank}] "
            if rank != "0" or isinstance(error, ConnectionError):
                _let_others_speak(error)
        from hnpretrain.config import without_secrets

        text = without_secrets(" ".join(str(error).split()))
        print(f"{prefix}error: {text}", file=sys.stderr, flush=True)
        sys.exit(1)


def _let_others_speak(error: Exception) -> None:
    """Waits: mostly all ranks fail alike, and rank 0 says so; or one has failed, and says why.

    The launcher ends the rest meanwhile, which have failed and were not stopped.
    """
    from hnpretrain.train.stopping import was_asked

    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    # It may have done so already, while the error was on its way here, and does it once.
    if isinstance(error, ConnectionError) and was_asked(_OTHER_RANKS_WAIT):
        os._exit(1)
    time.sleep(_OTHER_RANKS_WAIT)


if __name__ == "__main__":
    main()
