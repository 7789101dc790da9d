"""The step `generate`: editors make candidates for proposals.

    1. What is finished is read. If it was made with other settings, the run is refused, before
       anything is made. Where only the checks' settings differ, the checks are made anew.
    2. What is left is dealt out in whole batches, best proposals first: to this process, or to one
       process a device.
    3. Each candidate's pictures are written, then its record; a run that was killed, started again,
       makes what is unfinished, with the same bytes.

Seeds come from (seed, proposal, editor, number), so nothing depends on who makes what, or when. Of
several jobs (`part`, `parts`), each takes its share of the proposals; they share the folder alone.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

from hnpretrain.config import require_one_of
from hnpretrain.inpaint import candidates, devices
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
from hnpretrain.inpaint.working import working_on
from hnpretrain.shards.images import DEFAULT_MAX_PIXELS, require_max_pixels
from shard_tools.workers import Tally, alone, spread

EDITORS = ("recolor", "resize", "remove", "replace", "diffusion")


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
        devices.check_names(self.devices)

    def found_devices(self) -> list[str]:
        """The devices that a run uses here; ValueError if torch does not see them."""
        return devices.devices_of(self.devices, use_gpus="diffusion" in self.editors)


@dataclass(frozen=True)
class GenerateState:
    """How far a run is.

    Attributes:
        kept: pictures of earlier runs that are left as they are.
        to_do: in all of this run.
        made: in this run.
        not_made: in this run: no editor can, or the photo is broken.
        stopping: a signal came.
        rechecked: of earlier runs, checked anew in this one.
    """

    kept: int
    to_do: int
    made: int
    not_made: int
    stopping: bool
    rechecked: int = 0

    @property
    def done(self) -> int:
        return self.made + self.not_made + self.rechecked


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
    max_pixels: int = DEFAULT_MAX_PIXELS,
    report: Report = lambda _: None,
) -> GenerateResult:
    """Makes all candidates of this part that are not finished.

    Args:
        folder: with proposals.
        settings: of the run.
        editors: of `editors_of`, or others. With several devices they are sent to other processes,
            as the check is: by pickle, before they have loaded anything.
        check: of each picture; what it gives is recorded, and its settings.
        seed: of all random draws.
        max_pixels: largest width x height of a photo; proposals of larger ones are `broken`.
        report: called a few times a second, and at the end.

    Raises:
        ValueError: settings are wrong, or not those of candidates that are there (nothing was
            made); another job works on this part, or in other parts; an editor cannot be used.
        OSError: storage failed, or a worker died; finished candidates stay.
        KeyboardInterrupt: Ctrl-C or, in the main thread, SIGTERM; finished candidates stay.
    """
    names = [editor.name for editor in editors]
    if len(set(names)) < len(names):
        raise ValueError(f"editors {', '.join(names)}: no name twice")
    require_max_pixels(max_pixels)
    with working_on(folder, settings.part, settings.parts):
        proposals = folder.proposals()[settings.part :: settings.parts]
        counts = [EditorCounts() for _ in editors]
        debts = _debts(folder, settings, editors, proposals, check, seed, counts)
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


def _debts(
    folder: Folder,
    settings: GenerateSettings,
    editors: Sequence[Editor],
    proposals: Sequence[Proposal],
    check: Checker,
    seed: int,
    counts: Sequence[EditorCounts],
) -> dict[int, list[Debt]]:
    """What is to be made, by editor's place; what is finished is counted.

    Raises:
        ValueError: something is there that was made otherwise, and is not to be made anew.
    """
    debts: dict[int, list[Debt]] = {}
    other: dict[Slot, str] = {}
    checked_with = candidates.as_json(check.settings)
    for place, editor in enumerate(editors):
        for proposal in proposals:
            if proposal.edit not in editor.edits:
                continue
            of_editor = candidates.as_json(editor.settings_for(proposal))
            numbers, recheck = [], []
            for number in range(settings.candidates if editor.is_seeded else 1):
                slot = Slot(proposal.id, editor.name, number)
                found = candidates.read(folder, slot)
                if found is None:
                    numbers.append(number)
                elif differing := candidates.differences(found, slot.seed(seed), of_editor):
                    other[slot] = "; ".join(differing)
                    numbers.append(number)
                elif not isinstance(found, Cannot) and found.checked_with != checked_with:
                    recheck.append(number)
                else:
                    counts[place].kept += not isinstance(found, Cannot)
                    counts[place].add(found)
            if numbers or recheck:
                debt = Debt(proposal, tuple(numbers), tuple(recheck))
                debts.setdefault(place, []).append(debt)
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
    to_do = sum(each.pictures + each.rechecks for each in work)

    def tell() -> None:
        made, not_made, rechecked, more = tally.sums()
        stopping = tally.stopped() and made + not_made + rechecked < to_do + more
        state = GenerateState(kept - more, to_do + more, made, not_made, stopping, rechecked)
        report(state)

    used = settings.found_devices()[: len(work)]
    if len(used) == 1:
        devices.use(used[0])
        with contextlib.closing(alone(work, make(tally, tell), tally)) as all_done:
            yield from all_done
        return
    next_device = get_context("spawn").Value("i", 0)
    arguments = (used, next_device, make)
    in_workers = spread(work, devices.prepare, arguments, tally, len(used), tell)
    try:
        with contextlib.closing(in_workers) as all_done:
            yield from all_done
    except ChildProcessError as error:
        raise ChildProcessError(
            f"one of the processes on {', '.join(used)} died (most often it is killed because "
            "memory ran out); finished candidates are kept: start again, with fewer devices"
        ) from error
    tell()
