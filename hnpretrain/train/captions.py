"""Some captions of a data set, to foresee what its texts will cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hnpretrain.data.loader import DataSettings
from hnpretrain.data.plan import Plan
from hnpretrain.data.samples import Tokenizer
from hnpretrain.data.streams import ShardSet, read_stream
from hnpretrain.data.texts import TextLayout, Texts
from hnpretrain.shards.index import Index
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
    settings: DataSettings, index: Index, tokenizer: Tokenizer, seed: int
) -> CaptionSample:
    """Captions of a few samples of the data set; no image is decoded.

    Raises:
        ValueError: samples in a row are broken.
        OSError: a shard could not be read.
    """
    plan = Plan(
        shard_samples=tuple(shard.samples for shard in index.shards),
        streams=1,
        batch_size=1,
        block_size=_SAMPLES,
        seed=seed,
    )
    stream = read_stream(ShardSet(settings.shards, index), plan, 0, 0, 0, _first_caption)
    captions = [next(stream)[0] for _ in range(min(_SAMPLES, plan.stream_length))]
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


def _first_caption(raw: RawSample) -> Caption:
    return raw.captions()[0]
