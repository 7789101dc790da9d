"""`hnpretrain plan`, `train` and `export`."""

from __future__ import annotations

import typer


def plan(
    config: str = typer.Argument(help="The run's YAML; see configs/ for examples."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Settings that go before the YAML's, as a.b=value."
    ),
    ranks: int = typer.Option(
        0, min=0, help="Processes that will train; 0 takes WORLD_SIZE, or 1."
    ),
    json_file: str = typer.Option("", "--json", help="Write it here, too."),
) -> None:
    """Tell what `train` would do: steps, texts, parameters, memory. Nothing is trained."""
    import json
    import os
    from pathlib import Path

    from hnpretrain.config import load
    from hnpretrain.train.plan import foresee, show
    from hnpretrain.train.settings import TrainSettings

    ranks = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    foreseen = foresee(load(TrainSettings, config, overrides or []), ranks)
    show(foreseen)
    if json_file:
        Path(json_file).write_text(json.dumps(foreseen, indent=1) + "\n", encoding="utf-8")


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
