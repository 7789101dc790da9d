"""The benchmarks by name. A new one is a module beside these and a line in `_KINDS`."""

from __future__ import annotations

from pathlib import Path

from hnpretrain.config import require_one_of
from hnpretrain.eval.benchmarks.aro import (
    ARO_ATTRIBUTION,
    ARO_COCO_ORDER,
    ARO_FLICKR_ORDER,
    ARO_RELATION,
)
from hnpretrain.eval.benchmarks.base import Benchmark, Kind
from hnpretrain.eval.benchmarks.bivlc import BIVLC
from hnpretrain.eval.benchmarks.cola import COLA, COLA_SINGLE
from hnpretrain.eval.benchmarks.colorswap import COLORSWAP
from hnpretrain.eval.benchmarks.crepe import CREPE_PRODUCTIVITY, CREPE_SYSTEMATICITY
from hnpretrain.eval.benchmarks.eqben import EQBEN
from hnpretrain.eval.benchmarks.imagecode import IMAGECODE
from hnpretrain.eval.benchmarks.inpaintcoco import INPAINTCOCO
from hnpretrain.eval.benchmarks.mmvp_vlm import MMVP_VLM
from hnpretrain.eval.benchmarks.retrieval import RETRIEVAL
from hnpretrain.eval.benchmarks.spec import SPEC
from hnpretrain.eval.benchmarks.sugarcrepe import SUGARCREPE
from hnpretrain.eval.benchmarks.sugarcrepe_pp import SUGARCREPE_PP
from hnpretrain.eval.benchmarks.svo_probes import SVO_PROBES
from hnpretrain.eval.benchmarks.valse import VALSE
from hnpretrain.eval.benchmarks.vl_checklist import VL_CHECKLIST
from hnpretrain.eval.benchmarks.whatsup import WHATSUP, WHATSUP_COCO, WHATSUP_VG
from hnpretrain.eval.benchmarks.winoground import WINOGROUND_SET
from hnpretrain.eval.benchmarks.zero_shot import ZERO_SHOT, ZERO_SHOT_SIMPLE
from hnpretrain.eval.hub import downloaded

_KINDS: tuple[Kind, ...] = (
    ARO_ATTRIBUTION,
    ARO_COCO_ORDER,
    ARO_FLICKR_ORDER,
    ARO_RELATION,
    BIVLC,
    COLA,
    COLA_SINGLE,
    COLORSWAP,
    CREPE_PRODUCTIVITY,
    CREPE_SYSTEMATICITY,
    EQBEN,
    IMAGECODE,
    INPAINTCOCO,
    MMVP_VLM,
    RETRIEVAL,
    SPEC,
    SUGARCREPE,
    SUGARCREPE_PP,
    SVO_PROBES,
    VALSE,
    VL_CHECKLIST,
    WHATSUP,
    WHATSUP_COCO,
    WHATSUP_VG,
    WINOGROUND_SET,
    ZERO_SHOT,
    ZERO_SHOT_SIMPLE,
)
KINDS = {kind.about.name: kind for kind in _KINDS}


def load(name: str, data: Path, images: Path | None = None, partial: bool = False) -> Benchmark:
    """Reads a benchmark's files and checks them; no model is needed yet.

    Args:
        name: one of KINDS.
        data: its file or folder, or `hub` for the data set on the Hugging Face hub, which needs a
            network.
        images: its image folder, where it takes one.
        partial: score the items whose images are there, and mark the result as partial.

    Raises:
        ValueError: the name is unknown, or a file is missing or malformed.
    """
    require_one_of("benchmark", name, sorted(KINDS))
    kind = KINDS[name]
    if str(data) == "hub":
        data = downloaded(kind.about)
    return kind.load(data, images, partial)


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
