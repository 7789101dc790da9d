"""Loads spaCy without torch: `from shard_tools.lean_spacy import spacy`.

spaCy's array library (thinc) imports torch wherever it is installed, to offer layers that we don't
use: seconds and hundreds of megabytes for each worker process. For the moment of that import, torch
is made to look missing; afterwards it can be imported as ever.
"""

from __future__ import annotations

import sys

if "torch" not in sys.modules:
    sys.modules["torch"] = None  # type: ignore[assignment]  # documented: such an import fails
    try:
        import spacy
        from thinc.api import use_ops
    finally:
        del sys.modules["torch"]
else:
    import spacy
    from thinc.api import use_ops

__all__ = ["spacy", "use_ops"]
