"""The packages that `pip install 'hnpretrain[inpaint]'` brings."""

from __future__ import annotations

from importlib.util import find_spec


def require(*modules: str) -> None:
    """Raises ValueError, with what to do, if one is not installed."""
    for name in modules:
        if find_spec(name) is None:
            raise ValueError(
                f"the module {name} is not installed: pip install 'hnpretrain[inpaint]'"
            )
