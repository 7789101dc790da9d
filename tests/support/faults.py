"""A rank that fails in the middle of its work, without a line in the code for it."""

from __future__ import annotations

from pathlib import Path

MESSAGE = "a fault of rank 1"
# Python imports it at the start of every process that finds it.
_HOOK = """
import os, pathlib, signal, threading, time

latest, mark = pathlib.Path({run!r}, "checkpoints", "latest"), pathlib.Path({mark!r})

def fail(number, frame):
    raise RuntimeError({message!r})

def watch():
    while not latest.exists():
        time.sleep(0.01)
    mark.touch()
    os.kill(os.getpid(), signal.SIGALRM)

if os.environ.get("RANK") == "1" and not mark.exists():
    signal.signal(signal.SIGALRM, fail)
    threading.Thread(target=watch, daemon=True).start()
"""


def fail_once(folder: Path, run: Path) -> str:
    """A folder for PYTHONPATH, with which rank 1 of a run raises once, after a checkpoint."""
    hooks = folder / "hooks"
    hooks.mkdir()
    hook = _HOOK.format(run=str(run), mark=str(folder / "mark"), message=MESSAGE)
    (hooks / "sitecustomize.py").write_text(hook)
    return str(hooks)
