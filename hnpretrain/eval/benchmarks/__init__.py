"""The benchmarks by name. A new one is a module beside these and a line in `BENCHMARKS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hnpretrain.config import require_one_of
from hnpretrain.eval.benchmarks.base import Benchmark
from hnpretrain.eval.benchmarks.inpaintcoco import InpaintCoco
from hnpretrain.eval.benchmarks.retrieval import Retrieval
from hnpretrain.eval.benchmarks.sugarcrepe import SugarCrepe
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.report import Result

BENCHMARKS = {kind.name: kind for kind in (InpaintCoco, Retrieval, SugarCrepe)}


def load(
    name: str, data: Path, images: Path | None = None, allow_missing: bool = False
) -> Benchmark:
    """Reads a benchmark's files and checks them; no model is needed yet.

    Args:
        name: one of BENCHMARKS.
        data: its file or folder, see the benchmark's module.
        images: its image folder, where it takes one.
        allow_missing: score the items whose images are there, and mark the result as partial.

    Raises:
        ValueError: the name is unknown, a file is missing or malformed, or images are missing.
    """
    require_one_of("benchmark", name, sorted(BENCHMARKS))
    return BENCHMARKS[name].load(data, images, allow_missing)


def read_request(text: str, key: str) -> tuple[str, Path, Path | None]:
    """`NAME=DATA[,IMAGES]` in parts: what `load` takes.

    Args:
        key: what errors call the place where it was written.

    Raises:
        ValueError: it is written in another way.
    """
    name, _, places = text.partition("=")
    data, _, images = places.partition(",")
    if not name or not data:
        raise ValueError(
            f"{key} {text!r}: write NAME=DATA or NAME=DATA,IMAGES, for example "
            "sugarcrepe=sugarcrepe/data,coco/val2017"
        )
    return name, Path(data), Path(images) if images else None


def run(benchmarks: Sequence[Benchmark], encoder: Encoder) -> list[Result]:
    """One result a benchmark, in order."""
    return [benchmark.run(encoder) for benchmark in benchmarks]
