"""Settings of `hnpretrain inpaint propose` and `generate`: one YAML for both."""

from __future__ import annotations

from dataclasses import dataclass, field

from hnpretrain.inpaint.checks import CheckSettings
from hnpretrain.inpaint.generate import GenerateSettings
from hnpretrain.inpaint.propose import ProposeSettings
from hnpretrain.inpaint.segmenter import MaskSettings
from hnpretrain.shards.images import DEFAULT_MAX_PIXELS, require_max_pixels
from shard_tools.sources import SourceSettings


@dataclass
class InpaintSettings:
    """All settings.

    Attributes:
        source: where photos and captions come from, as in `shard build`; kind=tar reads shards
            with their negatives.
        output: local folder of proposals, pictures and decisions.
        seed: of all random draws.
        max_pixels: largest width x height of a photo; larger ones are left out undecoded.
        masks: where the things of a photo are.
        propose: what may change, and how much is proposed.
        generate: which editors make how many pictures.
        checks: bounds of the automatic checks.
    """

    source: SourceSettings = field(default_factory=SourceSettings)
    output: str = ""
    seed: int = 0
    max_pixels: int = DEFAULT_MAX_PIXELS
    masks: MaskSettings = field(default_factory=MaskSettings)
    propose: ProposeSettings = field(default_factory=ProposeSettings)
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    checks: CheckSettings = field(default_factory=CheckSettings)

    def __post_init__(self) -> None:
        require_max_pixels(self.max_pixels)

    def require_output(self) -> str:
        """The output; ValueError if none is named."""
        if not self.output:
            raise ValueError("output is empty: set it to a local folder (output=pairs)")
        return self.output
