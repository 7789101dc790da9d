"""`hnpretrain train` and `hnpretrain export`."""

from __future__ import annotations

import typer


def train(
    config: str = typer.Argument(help="The run's YAML; see configs/ for examples."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Settings that go before the YAML's, as a.b=value."
    ),
) -> None:
    """Train; also `torchrun ... -m hnpretrain.train CONFIG`.

    Goes on from the latest checkpoint if `output` holds one.
    """
    from hnpretrain.config import load
    from hnpretrain.train.loop import train as run
    from hnpretrain.train.settings import TrainSettings

    run(load(TrainSettings, config, overrides or []))


def export(
    checkpoint: str = typer.Argument(help="A checkpoint's folder, or a run's (its latest one)."),
    output: str = typer.Argument(help="The folder to write."),
) -> None:
    """Write a checkpoint as a folder that open_clip loads (`local-dir:OUTPUT`)."""
    from hnpretrain.models import export as write

    write(checkpoint, output)
    print(f"{output}: open_clip.create_model_from_pretrained('local-dir:{output}')")
