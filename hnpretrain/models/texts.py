"""Which layout of texts a model's text tower takes, and its features from texts laid out so.

A tower may be spared tokens only where that changes nothing. Causal towers that are read at their
end token see no padding and give equal prefixes equal states: token trees. Hugging Face's towers
mask padding: rows trimmed to the longest text. Others look at their padding, or are read at a fixed
place: rows as the tokenizer pads them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import ResidualAttentionBlock, TextTransformer

from hnpretrain.config import require_one_of
from hnpretrain.data.texts import TextLayout, Texts
from hnpretrain.data.trees import TokenTrees
from hnpretrain.models.trees import TreeEncoder

LAYOUTS = ("auto", "trees", "trimmed", "padded")
"""From what spares most tokens on; a tower that takes one takes those after it."""


@dataclass(frozen=True)
class ChosenLayout:
    """A layout, and why it is this one, in words."""

    layout: TextLayout
    reason: str


def choose_layout(model: open_clip.CLIP, wanted: str = "auto", words: bool = False) -> ChosenLayout:
    """The layout with the fewest tokens that leaves the model's features as they are.

    Args:
        wanted: of LAYOUTS.
        words: whether features of words will be asked for.

    Raises:
        ValueError: the layout that is wanted is none, or would change the features; or features of
            words are asked for, and there are no token trees.
    """
    require_one_of("model.text_layout", wanted, LAYOUTS)
    tower = _tower(model)
    obstacle = obstacle_to_trees(model)
    if words and obstacle:
        raise ValueError(
            "a term of the loss compares words, whose features come from token trees, and this "
            f"model has none: {obstacle}. Take another loss.objective or model"
        )
    if words and wanted not in ("auto", "trees"):
        raise ValueError(
            "a term of the loss compares words, whose features come from token trees: "
            f"model.text_layout={wanted} gives none; set it to auto or trees"
        )
    if obstacle is None:
        eos_id = tower.text_eos_id if isinstance(tower, open_clip.CLIP) else tower.eos_id
        end_id = eos_id if _pool_type(tower) == "eos" else None
        best = TextLayout("trees", end_id=end_id, words=words)
        reason = "the text tower is causal and read at its end token"
    elif isinstance(tower, HFTextEncoder):
        best = TextLayout("trimmed", causal=False, pad_id=tower.config.pad_token_id)
        reason = f"{obstacle}, which masks padding"
    else:
        best = TextLayout("padded", causal=False)
        reason = f"{obstacle}, and may look at its padding"
    if wanted in ("auto", best.kind):
        return ChosenLayout(best, reason)
    if LAYOUTS.index(wanted) < LAYOUTS.index(best.kind):
        raise ValueError(
            f"model.text_layout={wanted} would change this model's features: {reason}. Set it to "
            "auto"
        )
    return ChosenLayout(
        replace(best, kind=wanted), f"it is asked for, where auto would take {best.kind}: {reason}"
    )


def obstacle_to_trees(model: open_clip.CLIP) -> str | None:
    """Why the model's text tower cannot encode token trees; None if it can."""
    tower = _tower(model)
    if not isinstance(tower, open_clip.CLIP | TextTransformer):
        return f"the text tower is a {type(tower).__name__}"
    if getattr(tower, "attn_mask", None) is None:
        return "the text tower is bidirectional"
    if getattr(tower, "cls_emb", None) is not None:
        return "the text tower has a class token of its own"
    if _pool_type(tower) not in ("argmax", "eos"):
        return f"the text tower pools by {_pool_type(tower)!r}, not at the end token"
    for block in tower.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock:
            return f"the text tower is made of {type(block).__name__}"
        attention = block.attn
        if attention.dropout or attention.bias_k is not None or attention.in_proj_weight is None:
            return "the text tower's attention is not CLIP's"
    return None


class TextEncoder:
    """A model's text tower, for texts of any layout that it takes.

    Args:
        model: an open_clip model.
        attention: for token trees, of `trees.ATTENTIONS`.
    """

    def __init__(self, model: open_clip.CLIP, attention: str = "sdpa") -> None:
        self._model = model
        self._trees = TreeEncoder(_tower(model), attention)

    def __call__(self, texts: Texts) -> torch.Tensor:
        """(B, C, D) features of unit norm; of texts that there are not, those of the first."""
        if isinstance(texts, TokenTrees):
            return self._trees(texts)
        features_ND = self._model.encode_text(texts.token_NL, normalize=True)
        return features_ND[texts.place_BC]

    def with_words(self, texts: Texts) -> tuple[torch.Tensor, torch.Tensor]:
        """Features as above, and those of words; see TreeEncoder."""
        assert isinstance(texts, TokenTrees), texts
        return self._trees.with_words(texts)


def _tower(model: open_clip.CLIP) -> Any:
    """Where the text tower's modules are: CLIP itself has them, other models a tower."""
    return getattr(model, "text", model)


def _pool_type(tower: open_clip.CLIP | TextTransformer) -> str:
    return tower.text_pool_type if isinstance(tower, open_clip.CLIP) else tower.pool_type
