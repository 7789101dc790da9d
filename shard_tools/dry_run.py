"""`shard build --dry-run`: what a build checks and decides before it works. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from hnpretrain.config import to_yaml
from hnpretrain.shards.lock import holder
from shard_tools import folder, record
from shard_tools.counting import captions_of, counting_order, table_path
from shard_tools.prepare import lock_path, refuse_other_arrays, settle
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceShard, plan_source


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do.

    Attributes:
        shards: of the whole source.
        kept: of this part, finished already.
        to_do: of this part, to be built.
        to_count: shards whose words would be counted first, in that order; where the source does
            not know its captions, the first of them are enough. None if nothing is to be counted.
        differences: between the folder's settings and these, which rebuild=true overrules.
        owner: of this part's lock, where another job works on it now.
    """

    shards: list[SourceShard]
    kept: int
    to_do: list[SourceShard]
    to_count: list[SourceShard] | None
    differences: str
    owner: str | None


def plan(settings: BuildSettings) -> BuildPlan:
    """Plans the source and looks at the folder.

    Raises:
        ValueError, OSError: what would keep `build` from beginning.
    """
    shards = plan_source(settings.source, settings.samples_per_shard)
    folder.check_place(settings.output, shards)
    refuse_other_arrays(settings)
    settled = settle(settings, shards)
    kept, to_do, to_count = 0, settings.part_of(shards), None
    if settled.counts:
        to_count = _shards_counted(shards, settings.negatives.count_captions)
    else:
        configuration = record.fingerprint_of(record.record_of(settings, settled.maker))
        sizes = folder.read_sizes(settings.output)
        found, to_do = folder.find_finished(settings.output, to_do, configuration, sizes)
        kept = len(found)
    owner = holder(lock_path(settings))
    return BuildPlan(shards, kept, to_do, to_count, settled.differences, owner)


def _shards_counted(shards: Sequence[SourceShard], captions: int) -> list[SourceShard]:
    counted, total = [], 0
    for shard in counting_order(shards):
        if total >= captions:
            break
        counted.append(shard)
        total += shard.captions or 0
    return counted


def print_plan(console: Console, settings: BuildSettings, plan: BuildPlan) -> None:
    """The settings as resolved, then what would be done, a line each."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    say(to_yaml(settings).rstrip())
    say("")
    part = f"part {settings.part} of {settings.parts}: " if settings.parts > 1 else ""
    say(
        f"{part}{len(plan.to_do)} shards to build, {plan.kept} kept, "
        f"of {len(plan.shards)} in the source"
    )
    say(f"to build: {_amounts(plan.to_do)}")
    say(f"images: {'decoded to their end' if settings.decodes else 'headers checked, not decoded'}")
    if plan.to_count is not None:
        known = captions_of(plan.to_count)
        count = f"about {settings.negatives.count_captions:,}" if known is None else f"{known:,}"
        which = f"{len(plan.to_count)} shards"
        if known is None:
            which = "as many source shards as that takes"
        say(
            f"first counts the words of {count} captions ({which}) into "
            f"{table_path(settings.output)}"
        )
    if plan.differences:
        say(f"rebuilds all, since settings differ (there -> now): {plan.differences}")
    if plan.owner is not None:
        say(f"a build would be refused now: {plan.owner} works on this part")
    say("dry run: nothing was written")


def _amounts(shards: Sequence[SourceShard]) -> str:
    captions = captions_of(shards)
    if captions is None:
        return f"{sum(shard.size or 0 for shard in shards) / 1e9:,.3f} GB of tars"
    return f"{sum(shard.samples or 0 for shard in shards):,} samples with {captions:,} captions"
