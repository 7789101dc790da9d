"""What `hnpretrain shard build` and `count` are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hnpretrain.config import require_one_of
from hnpretrain.shards.images import DEFAULT_MAX_PIXELS, require_max_pixels
from shard_tools.negatives import NegativeSettings
from shard_tools.sources import SourceSettings, SourceShard

_IMAGE_CHECKS = ("auto", "decode", "header")


@dataclass
class BuildSettings:
    """All settings of the offline job.

    Attributes:
        source: where captions and images come from.
        output: folder or URL of the shards.
        samples_per_shard: for the manifests; a source tar becomes one shard.
        workers: processes; 0 takes one for each core this process may use. No effect on the bytes.
        part: of an array of `parts` jobs, this one's number, from 0. No effect on the bytes.
        parts: how many jobs, on any machines, build the shards together: shard n is built by the
            job with `part` = n % parts.
        rebuild: whether shards that are there with other settings are made anew; else the job is
            refused.
        seed: of all random draws.
        max_pixels: largest width x height of an image; larger ones are rejected undecoded.
        check_images: `decode` decodes each image to its end once, `header` reads headers alone, so
            that what is damaged behind one passes; `auto` is `header` for tars and `decode` for the
            manifests.
        max_reject_share: largest share of samples that may be rejected, and of source tars that may
            be broken, before the build fails.
        negatives: which negatives are made, and how.
    """

    source: SourceSettings = field(default_factory=SourceSettings)
    output: str = ""
    samples_per_shard: int = 1000
    workers: int = 0
    part: int = 0
    parts: int = 1
    rebuild: bool = False
    seed: int = 0
    max_pixels: int = DEFAULT_MAX_PIXELS
    check_images: str = "auto"
    max_reject_share: float = 0.1
    negatives: NegativeSettings = field(default_factory=NegativeSettings)

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={self.samples_per_shard}: at least 1")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: 0 (all cores) or more")
        if self.parts < 1:
            raise ValueError(f"parts={self.parts}: at least 1")
        if not 0 <= self.part < self.parts:
            raise ValueError(f"part={self.part}: between 0 and parts - 1 = {self.parts - 1}")
        require_max_pixels(self.max_pixels)
        require_one_of("check_images", self.check_images, _IMAGE_CHECKS)
        if not 0 <= self.max_reject_share <= 1:
            raise ValueError(f"max_reject_share={self.max_reject_share}: between 0 and 1")

    @property
    def decodes(self) -> bool:
        """Whether images are decoded to their end."""
        if self.check_images == "auto":
            return self.source.kind != "tar"
        return self.check_images == "decode"

    def part_of(self, shards: Sequence[SourceShard]) -> list[SourceShard]:
        """The shards that this part of the array builds."""
        return list(shards[self.part :: self.parts])
