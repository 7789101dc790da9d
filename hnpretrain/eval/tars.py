"""WebDataset tars: what is in each sample at once, its image when it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hnpretrain.eval.images import ImageSource
from hnpretrain.shards.schema import IMAGE_EXTENSIONS
from hnpretrain.shards.tar import RawSample, decode_sample, iterate_samples


def read_tar(path: Path, what: str) -> Iterator[tuple[str, RawSample, ImageSource]]:
    """The samples of a tar, which is read once: (place for messages, sample, its image).

    Args:
        what: the benchmark's name, for errors.

    Raises:
        ValueError: the tar is damaged or cut, or a sample has no image, or several.
    """
    start = 0
    for sample in _samples(path, what):
        where = f"{path} sample {sample.key!r}"
        found = [each for each in IMAGE_EXTENSIONS if each in sample.members]
        if len(found) != 1:
            raise ValueError(
                f"{what}: {where} must have one image (.{', .'.join(IMAGE_EXTENSIONS)}), got the "
                f"members {', '.join(sorted(sample.members)) or 'none'}"
            )
        yield where, sample, ImageSource(where, partial(_image, path, start, sample.stop, where))
        start = sample.stop


def _samples(path: Path, what: str) -> Iterator[RawSample]:
    try:
        with path.open("rb") as file:
            yield from iterate_samples(file, whole=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{what}: {path} cannot be read: {error}") from error


def _image(path: Path, start: int, stop: int, where: str) -> bytes:
    """The image among the members of a sample, which are a tar of their own."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    try:
        return decode_sample(data).image()[0]
    except ValueError as error:
        raise ValueError(f"image {where} cannot be read: {error}") from error
