"""`hnpretrain launch`."""

from __future__ import annotations

import typer

app = typer.Typer(help="Start runs: local (torchrun on this box).", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `local` a subcommand while it is the only one."""


@app.command()
def local(
    config: str = typer.Argument(help="The run's YAML."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Settings that go before the YAML's, as a.b=value."
    ),
    nproc: int = typer.Option(1, help="Processes; one a GPU on a GPU box."),
) -> None:
    """Train on this machine under torchrun."""
    from launch.local import run_local

    run_local(config, overrides or [], nproc)
