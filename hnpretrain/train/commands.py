"""`hnpretrain plan`, `train`, `export` and `checkpoint`."""

from __future__ import annotations

import typer

checkpoint_app = typer.Typer(help="Checkpoints of a run: convert.", no_args_is_help=True)


@checkpoint_app.callback()
def _group() -> None:
    """Keeps `convert` a subcommand while it is the only one."""


def plan(
    config: str = typer.Argument(help="The run's YAML; see configs/ for examples."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Settings that go before the YAML's, as a.b=value."
    ),
    ranks: int = typer.Option(
        0, min=0, help="Processes that will train; 0 takes WORLD_SIZE, or 1."
    ),
    mfu: float = typer.Option(
        0.4, metavar="SHARE", help="Of the devices' peak that the time is foretold with."
    ),
    json_file: str = typer.Option("", "--json", help="Write it here, too."),
) -> None:
    """Tell what `train` would do and take: steps, memory, compute, disk. Nothing is trained."""
    import json
    import os
    from pathlib import Path

    from hnpretrain.config import load
    from hnpretrain.train.plan import foresee, show
    from hnpretrain.train.settings import TrainSettings

    ranks = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    foreseen = foresee(load(TrainSettings, config, overrides or []), ranks, mfu)
    show(foreseen)
    if json_file:
        Path(json_file).write_text(json.dumps(foreseen, indent=1) + "\n", encoding="utf-8")


def train(
    config: str = typer.Argument(help="The run's YAML; see configs/ for examples."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Settings that go before the YAML's, as a.b=value."
    ),
) -> None:
    """Train; also `python -m launch.torchrun ... -m hnpretrain.train CONFIG`.

    Goes on from the latest checkpoint if `output` holds one. SIGTERM, SIGUSR1 and SIGUSR2 save the
    run and end it with exit status 75.
    """
    from hnpretrain.config import load
    from hnpretrain.train.loop import train as run
    from hnpretrain.train.settings import TrainSettings
    from hnpretrain.train.stopping import Stopped, stay

    try:
        run(load(TrainSettings, config, overrides or []))
    except Stopped:
        stay()
        raise


def export(
    checkpoint: str = typer.Argument(help="A checkpoint's folder, or a run's (its latest one)."),
    output: str = typer.Argument(help="The folder to write."),
    ema: bool = typer.Option(False, "--ema", help="The average of the weights (see `ema`)."),
) -> None:
    """Write a checkpoint as a folder that open_clip loads (`local-dir:OUTPUT`)."""
    from hnpretrain.models import export as write

    write(checkpoint, output, ema=ema)
    print(f"{output}: open_clip.create_model_from_pretrained('local-dir:{output}')")


@checkpoint_app.command()
def convert(
    run: str = typer.Argument(help="A run's folder (its latest checkpoint), or a checkpoint's."),
) -> None:
    """Make a checkpoint fit other numbers of processes and other ZeRO stages.

    Writes the weights and the optimizer's state in one piece beside what is there.
    """
    from pathlib import Path

    from hnpretrain.train.convert import convert as write

    print(f"{write(Path(run))} fits any zero_stage and number of processes now")
