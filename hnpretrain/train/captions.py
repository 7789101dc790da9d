"""Some captions of a data set, to foresee what its texts will cost."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch

from hnpretrain.data.background import Background
from hnpretrain.data.loader import DataSettings, block_reader, make_plan
from hnpretrain.data.mixture import Mixture
from hnpretrain.data.samples import Tokenizer
from hnpretrain.data.streams import Span, read_stream
from hnpretrain.data.texts import TextLayout, Texts
from hnpretrain.shards.schema import Caption
from hnpretrain.shards.tar import RawSample

# So many samples are read at most: enough to know a mean, and one read.
_SAMPLES = 64


@dataclass(frozen=True)
class CaptionSample:
    """The tokens of n samples' captions, with up to K negatives each.

    Attributes:
        token_BCL: int64 ids, as the tokenizer pads them; zeros where masked.
        mask_BC: True where there is a text.
    """

    token_BCL: torch.Tensor
    mask_BC: torch.Tensor

    def __len__(self) -> int:
        return len(self.token_BCL)

    def laid_out(self, layout: TextLayout, count: int) -> Texts:
        """The texts of the first samples."""
        return layout.lay_out(self.token_BCL[:count], self.mask_BC[:count])


def sample_captions(
    settings: DataSettings, mixture: Mixture, tokenizer: Tokenizer, seed: int
) -> CaptionSample:
    """Captions of a few samples of the data set; no image is decoded.

    Raises:
        BadShard: a shard cannot be used, and bad ones are not skipped.
        ValueError: nothing can stand in for a broken sample.
    """
    # The cache is for the workers, which know what they read again.
    settings = replace(settings, streams=1, block_size=_SAMPLES, cache="")
    plan = make_plan(settings, mixture, batch_size=1, seed=seed, world_size=1)
    reader = block_reader(settings, mixture, plan)
    span = Span(0, 0, min(_SAMPLES, plan.stream_length))  # the first block alone
    with contextlib.closing(Background(1)) as background:
        captions = [c for c, _ in read_stream(reader, background, 0, [span], _first_caption)]
    texts = [
        [caption.text, *(negative.text for negative in caption.negatives[: settings.negatives])]
        for caption in captions
    ]
    token_NL = tokenizer([text for row in texts for text in row])
    place_C = torch.arange(1 + settings.negatives)
    mask_BC = place_C < torch.tensor([len(row) for row in texts])[:, None]
    token_BCL = token_NL.new_zeros(*mask_BC.shape, token_NL.shape[1])
    token_BCL[mask_BC] = token_NL
    return CaptionSample(token_BCL, mask_BC)


def _first_caption(raw: RawSample, _passage: int) -> Caption:
    return raw.captions()[0]
