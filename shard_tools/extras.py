"""Libraries that only some commands need."""

from __future__ import annotations

import importlib.util


def require_sklearn() -> None:
    """Raises ValueError, which says what to install, unless scikit-learn is there."""
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError(
            "this needs scikit-learn: pip install scikit-learn (or hnpretrain with [bench])"
        )
