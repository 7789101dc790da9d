"""Benchmarks' files from the Hugging Face hub, for who has a network."""

from __future__ import annotations

from pathlib import Path

from hnpretrain.eval.benchmarks.base import About


def downloaded(about: About) -> Path:
    """The folder with a benchmark's files, in the hub's own cache; fetched unless they are there.

    Raises:
        ValueError: it is not on the hub in the layout that is read here, or cannot be fetched.
    """
    if not about.hub:
        raise ValueError(
            f"{about.name}=hub: it is not on the hub as its authors lay it out; get it from "
            f"{about.source}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            about.hub, repo_type="dataset", allow_patterns=list(about.files) or None
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{about.name}=hub: {about.hub} cannot be fetched ({error}); some data sets want "
            "`hf auth login` and consent to their terms"
        ) from error
    return Path(folder)
