"""The step `generate`: editors make candidates for proposals.

    1. What is finished is read. If it was made with other settings, the run is refused, before
       anything is made.
    2. What is left is dealt out in whole batches, best proposals first: to this process, or to one
       process a device.
    3. Each candidate's pictures are written, then its record; a run that was killed, started again,
       makes what is unfinished, with the same bytes.

Seeds come from (seed, proposal, editor, number), so nothing depends on who makes what, or when. Of
several jobs (`part`, `parts`), each takes its share of the proposals; they share the folder alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any

from hnpretrain.config import require_one_of
from hnpretrain.inpaint import candidates
from hnpretrain.inpaint.candidates import Cannot, Slot
from hnpretrain.inpaint.decisions import decision_files
from hnpretrain.inpaint.editors.base import Editor
from hnpretrain.inpaint.editors.diffusion import DiffusionEditor, DiffusionSettings
from hnpretrain.inpaint.editors.recolor import RecolorEditor, RecolorSettings
from hnpretrain.inpaint.editors.remove import RemoveEditor, RemoveSettings
from hnpretrain.inpaint.editors.replace import ReplaceEditor, ReplaceSettings
from hnpretrain.inpaint.editors.resize import ResizeEditor, ResizeSettings
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.maker import (
    COUNTS,
    Assignment,
    Broken,
    Checker,
    Debt,
    Done,
    EditorCounts,
    Maker,
    assign,
)
from hnpretrain.inpaint.records import Proposal
from hnpretrain.shards.lock import Locked, locked
from shard_tools.workers import Tally, alone, cores, spread

EDITORS = ("recolor", "resize", "remove", "replace", "diffusion")
_DEVICE = re.compile(r"(cpu|mps|cuda)(:\d+)?")


@dataclass
class GenerateSettings:
    """All settings of `hnpretrain inpaint generate`.

    Attributes:
        editors: which ones: recolor, resize, remove, replace, diffusion. Each makes candidates for
            the kinds of proposals that it takes.
        candidates: pictures of each editor for a proposal; of one whose pictures do not depend on
            the seed, there is one.
        part: of an array of `parts` jobs, this one's number, from 0. No effect on the bytes.
        parts: how many jobs, on any machines, work on the folder together: proposal n is the job's
            with `part` = n % parts.
        rebuild: whether candidates that are there with other settings or seeds are made anew; else
            the job is refused.
        devices: one process each: [cuda:0, cuda:1], or [cpu, cpu]. Empty takes every GPU that torch
            sees if `diffusion` is among the editors, and else one process on the CPU.
        recolor: of the editor of that name, and so on.
    """

    editors: list[str] = field(default_factory=lambda: list(EDITORS[:-1]))
    candidates: int = 4
    part: int = 0
    parts: int = 1
    rebuild: bool = False
    devices: list[str] = field(default_factory=list)
    recolor: RecolorSettings = field(default_factory=RecolorSettings)
    resize: ResizeSettings = field(default_factory=ResizeSettings)
    remove: RemoveSettings = field(default_factory=RemoveSettings)
    replace: ReplaceSettings = field(default_factory=ReplaceSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)

    def __post_init__(self) -> None:
        if not self.editors or len(set(self.editors)) < len(self.editors):
            raise ValueError(f"editors={self.editors}: at least one, and none twice")
        for name in self.editors:
            require_one_of("editors", name, EDITORS)
        if self.candidates < 1:
            raise ValueError(f"candidates={self.candidates}: at least 1")
        if self.parts < 1:
            raise ValueError(f"parts={self.parts}: at least 1")
        if not 0 <= self.part < self.parts:
            raise ValueError(f"part={self.part}: between 0 and parts - 1 = {self.parts - 1}")
        kinds = set()
        for name in self.devices:
            found = _DEVICE.fullmatch(name)
            if found is None:
                raise ValueError(f"devices: {name!r} is not cpu, mps, cuda or cuda:NUMBER")
            kinds.add(found[1])
        if len(kinds) > 1:
            raise ValueError(f"devices={self.devices}: all of one kind, since their bytes differ")


@dataclass(frozen=True)
class GenerateState:
    """How far a run is.

    Attributes:
        kept: pictures of earlier runs.
        to_do: in all of this run.
        made: in this run.
        not_made: in this run: no editor can, or the photo is broken.
        stopping: a signal came.
    """

    kept: int
    to_do: int
    made: int
    not_made: int
    stopping: bool


@dataclass
class GenerateResult:
    """What a run did.

    Attributes:
        proposals: of this part.
        without_editor: of those, how many no editor takes.
        editors: counts by name.
        broken: proposals whose photo or mask cannot be used; a later run tries them again.
    """

    proposals: int
    without_editor: int
    editors: dict[str, EditorCounts]
    broken: list[Broken] = field(default_factory=list)

    @property
    def broken_by_reason(self) -> Counter[str]:
        return Counter(each.reason for each in self.broken)


Report = Callable[[GenerateState], None]


def generate(
    folder: Folder,
    settings: GenerateSettings,
    editors: Sequence[Editor],
    check: Checker,
    seed: int = 0,
    max_pixels: int = 100_000_000,
    report: Report = lambda _: None,
) -> GenerateResult:
    """Makes all candidates of this part that are not finished.

    Args:
        folder: with proposals.
        settings: of the run.
        editors: of `editors_of`, or others. With several devices they are sent to other processes,
            as the check is: by pickle, before they have loaded anything.
        check: called with the task, the picture, and those of the same editor and proposal with
            lower numbers; what it gives is recorded.
        seed: of all random draws.
        max_pixels: largest width x height of a photo; proposals of larger ones are `broken`.
        report: called a few times a second, and at the end.

    Raises:
        ValueError: settings are wrong, or not those of candidates that are there (nothing was
            made); another job works on this part; an editor cannot be used.
        OSError: storage failed, or a worker died; finished candidates stay.
        KeyboardInterrupt: Ctrl-C or, in the main thread, SIGTERM; finished candidates stay.
    """
    names = [editor.name for editor in editors]
    if len(set(names)) < len(names):
        raise ValueError(f"editors {', '.join(names)}: no name twice")
    proposals = folder.proposals()[settings.part :: settings.parts]
    with _locked(folder, settings):
        counts = [EditorCounts() for _ in editors]
        debts = _debts(folder, settings, editors, proposals, seed, counts)
        work = _in_order(assign(debts, editors), proposals)
        result = GenerateResult(
            proposals=len(proposals),
            without_editor=sum(
                not any(each.edit in editor.edits for editor in editors) for each in proposals
            ),
            editors=dict(zip(names, counts, strict=True)),
        )
        broken: dict[str, Broken] = {}
        kept = sum(each.kept + each.cannot.total() for each in counts)
        make = partial(Maker, folder.root, editors, seed, max_pixels, check)
        making = _make(settings, make, work, kept, report)
        with contextlib.closing(making):
            for done in making:
                counts[done.editor].join(done.counts)
                broken |= {each.proposal: each for each in done.broken}
        result.broken = list(broken.values())
    return result


def editors_of(settings: GenerateSettings, folder: Folder, device: str) -> list[Editor]:
    """The editors that the settings name, nothing loaded yet.

    Args:
        folder: of the proposals, and of what `replace` may paste.
        device: kind of the device: cpu, cuda or mps.

    Raises:
        ValueError: an editor's settings are wrong, or a package that it needs is not installed.
    """
    make: dict[str, Callable[[], Editor]] = {
        "recolor": lambda: RecolorEditor(settings.recolor),
        "resize": lambda: ResizeEditor(settings.resize),
        "remove": lambda: RemoveEditor(settings.remove),
        "replace": lambda: ReplaceEditor(folder, settings.replace),
        "diffusion": lambda: DiffusionEditor(settings.diffusion, device),
    }
    return [make[name]() for name in settings.editors]


def devices_of(settings: GenerateSettings) -> list[str]:
    """The devices that a run uses, one process each.

    Raises:
        ValueError: torch sees no such device here.
    """
    if not settings.devices and "diffusion" not in settings.editors:
        return ["cpu"]
    if settings.devices and settings.devices[0].startswith("cpu"):
        return list(settings.devices)
    import torch

    count = torch.cuda.device_count()
    if not settings.devices:
        return [f"cuda:{number}" for number in range(count)] or ["cpu"]
    for name in settings.devices:
        kind, _, number = name.partition(":")
        if kind == "cuda" and int(number or 0) >= count:
            raise ValueError(f"devices: torch sees {count} CUDA devices here, and no {name}")
        if kind == "mps" and not torch.backends.mps.is_available():
            raise ValueError("devices: torch sees no mps device here")
    return list(settings.devices)


def kind_of(device: str) -> str:
    """`cuda` of `cuda:1`: what editors are told, since each process has one current device."""
    return device.partition(":")[0]


@contextlib.contextmanager
def _locked(folder: Folder, settings: GenerateSettings) -> Iterator[None]:
    name = f".generate-{settings.part}-of-{settings.parts}.lock"
    try:
        with locked(str(folder.root / name)):
            yield
    except Locked as error:
        raise ValueError(
            f"{folder.root}: part {settings.part} of {settings.parts} is being made by "
            f"{error.owner}; wait for it to end"
        ) from error


def _debts(
    folder: Folder,
    settings: GenerateSettings,
    editors: Sequence[Editor],
    proposals: Sequence[Proposal],
    seed: int,
    counts: Sequence[EditorCounts],
) -> dict[int, list[Debt]]:
    """What is to be made, by editor's place; what is finished is counted.

    Raises:
        ValueError: something is there that was made otherwise, and is not to be made anew.
    """
    debts: dict[int, list[Debt]] = {}
    other: dict[Slot, str] = {}
    for place, editor in enumerate(editors):
        of_editor = candidates.as_json(editor.settings)
        for proposal in proposals:
            if proposal.edit not in editor.edits:
                continue
            numbers = []
            for number in range(settings.candidates if editor.is_seeded else 1):
                slot = Slot(proposal.id, editor.name, number)
                found = candidates.read(folder, slot)
                if found is not None:
                    differing = candidates.differences(found, slot.seed(seed), of_editor)
                    if not differing:
                        counts[place].kept += not isinstance(found, Cannot)
                        counts[place].add(found)
                        continue
                    other[slot] = "; ".join(differing)
                numbers.append(number)
            if numbers:
                debts.setdefault(place, []).append(Debt(proposal, tuple(numbers)))
    _refuse_other(folder, settings, other)
    return debts


def _refuse_other(folder: Folder, settings: GenerateSettings, other: Mapping[Slot, str]) -> None:
    """Raises ValueError if candidates differ, unless they may be made anew."""
    if not other:
        return
    slot, differing = next(iter(other.items()))
    if not settings.rebuild:
        raise ValueError(
            f"{folder.root}: {len(other)} candidates were made otherwise, {slot.name('')} with "
            f"(there -> now) {differing}. rebuild=true makes them anew, or choose another folder"
        )
    judged = [path for path in decision_files(folder).values() if path.stat().st_size]
    if judged:
        raise ValueError(
            f"{folder.root}: rebuild=true would exchange {len(other)} pictures under what people "
            f"said of them in {judged[0].parent}; move that folder away, or choose another one"
        )


def _in_order(work: Iterable[Assignment], proposals: Sequence[Proposal]) -> list[Assignment]:
    """Assignments with the best proposals first; for one proposal, in the order of editors."""
    rank = {proposal.id: n for n, proposal in enumerate(proposals)}
    return sorted(work, key=lambda each: (rank[each.debts[0].proposal.id], each.editor))


def _make(
    settings: GenerateSettings,
    make: Callable[..., Maker],
    work: Sequence[Assignment],
    kept: int,
    report: Report,
) -> Generator[Done, None, None]:
    """Does the work, in this process or others.

    Args:
        make: the maker, but for its tally, and what it calls after a batch.
    """
    if not work:
        return
    tally = Tally(len(work), COUNTS)
    to_do = sum(each.pictures for each in work)

    def tell() -> None:
        made, not_made = tally.sums()
        stopping = tally.stopped() and made + not_made < to_do
        report(GenerateState(kept, to_do, made, not_made, stopping))

    devices = devices_of(settings)[: len(work)]
    if len(devices) == 1:
        _use(devices[0])
        with contextlib.closing(alone(work, make(tally, tell), tally)) as all_done:
            yield from all_done
        return
    next_device = get_context("spawn").Value("i", 0)
    in_workers = spread(work, _prepare, (devices, next_device, make), tally, len(devices), tell)
    try:
        with contextlib.closing(in_workers) as all_done:
            yield from all_done
    except ChildProcessError as error:
        raise ChildProcessError(
            f"one of the processes on {', '.join(devices)} died (most often it is killed because "
            "memory ran out); finished candidates are kept: start again, with fewer devices"
        ) from error
    tell()


def _prepare(
    devices: Sequence[str], next_device: Any, make: Callable[..., Maker], tally: Tally
) -> Maker:
    """First in each worker process: takes a device that no other has."""
    with next_device.get_lock():
        number = next_device.value
        next_device.value += 1
    if devices[number].startswith("cpu"):
        # Each takes its share of the cores; before torch is imported.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // len(devices))))
    _use(devices[number])
    return make(tally)


def _use(device: str) -> None:
    """Makes a GPU the one that `cuda` means in this process."""
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)
