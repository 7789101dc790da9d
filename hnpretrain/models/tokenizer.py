"""open_clip's own BPE tokenizer with the same ids, many times faster.

SimpleTokenizer cleans each text with ftfy, which seldom has anything to do, and merges in Python.

1. Text that cleaning cannot change skips it.
2. The text is cut at spaces, and the ids of each chunk are remembered.
3. A new chunk is cut into words by SimpleTokenizer's own expression, and the words are merged by
   the Rust package `tokenizers`.

The package could read whole texts (Split, ByteLevel, BPE), but looking chunks up takes a fraction
of that time, and its expressions run in another engine, with another version of Unicode.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer, canonicalize_text, get_clean_fn
from tokenizers.models import BPE

from hnpretrain.data.samples import Tokenizer

_END_OF_WORD = "</w>"
# At most some 30 MB. The captions of COCO val2017 have 10,000 chunks; those of web pages have no
# end, nor have texts in scripts without spaces.
_REMEMBERED_CHUNKS = 2**16
_LONGEST_REMEMBERED = 24  # characters

# Text that ftfy and html.unescape leave as it is: ASCII, whose only changes are that entities are
# unescaped, control characters and terminal escapes removed, and line breaks made "\n" (as good a
# gap between words as any).
_CLEAN_TEXT = re.compile(r"[\t\n\r -%'-~]*")
# What open_clip's ways to clean do to such text, except to its gaps, which yield no ids.
_REST_OF_CLEANING: dict[Callable[[str], str], Callable[[str], str]] = {
    get_clean_fn("lower"): str.lower,
    get_clean_fn("whitespace"): str,
    get_clean_fn("canonicalize"): canonicalize_text,
}


def fast_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """An equal, faster tokenizer where open_clip's own BPE was given; any other as it is."""
    if type(tokenizer) is SimpleTokenizer and _can_be_equalled(tokenizer):
        return FastTokenizer(tokenizer)
    return tokenizer


def _can_be_equalled(tokenizer: SimpleTokenizer) -> bool:
    return (
        tokenizer.reduction_fn is None  # which may drop tokens at random
        and bool(tokenizer.context_length)
        # Specials are read as expressions, which could match across chunks; words cannot.
        and all(special and re.escape(special) == special for special in _specials(tokenizer))
        and _can_be_merged(_merges(tokenizer), tokenizer.encoder)
    )


def _specials(tokenizer: SimpleTokenizer) -> list[str]:
    return [tokenizer.decoder[token_id] for token_id in tokenizer.all_special_ids]


def _merges(tokenizer: SimpleTokenizer) -> list[tuple[str, str]]:
    return sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)


def _can_be_merged(merges: list[tuple[str, str]], vocabulary: dict[str, int]) -> bool:
    """Whether the package takes the merges, and must come to what SimpleTokenizer comes to.

    Of the merges that a word allows, both apply the first in rank: SimpleTokenizer in all places at
    once, the package in one place and then looks again. What it finds can differ only where the
    result of a merge is part of one that ranks before it, which no BPE learns.
    """
    parts: set[str] = set()
    for merge in merges:
        # A blank line in a file of merges is an empty one.
        if len(merge) != 2 or "".join(merge) in parts:
            return False
        parts.update(merge)
    return parts <= vocabulary.keys()


class FastTokenizer:
    """Gives the ids that the SimpleTokenizer gives that it is made of.

    It starts no threads, as the package does for batches, and so may be used before and after a
    fork; and by several threads.

    Attributes:
        context_length: L, the length of each row.
    """

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self.context_length: int = tokenizer.context_length
        self._original = tokenizer
        self._start = _to_bytes([tokenizer.sot_token_id])
        self._end = _to_bytes([tokenizer.eot_token_id])
        self._rest_of_cleaning = _REST_OF_CLEANING.get(tokenizer.clean_fn)
        self._specials = frozenset(_specials(tokenizer))
        self._bpe = BPE(
            vocab=tokenizer.encoder,
            merges=_merges(tokenizer),
            end_of_word_suffix=_END_OF_WORD,
            cache_capacity=0,  # chunks are remembered here
        )
        self._remembered_ids = lru_cache(_REMEMBERED_CHUNKS)(self._chunk_ids)

    def __reduce__(self) -> tuple[type[FastTokenizer], tuple[Any]]:
        return FastTokenizer, (self._original,)

    def __call__(self, texts: list[str] | str) -> torch.Tensor:
        """n x L int64 ids of n texts (or of one), zeros after the end token.

        A text that is too long is cut, and has its end token last.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = b"".join(map(self._row, texts))
        ids_nL = np.frombuffer(rows, np.int64).reshape(-1, self.context_length)
        return torch.from_numpy(ids_nL.copy())  # that it can be written to

    def _row(self, text: str) -> bytes:
        # Ids are kept as the bytes of int64s: rows are joined, cut and padded without a loop over
        # their tokens.
        ids = b"".join(map(self._ids, self._clean(text).split(" ")))
        size = self.context_length * len(self._end)
        row = (self._start + ids)[: size - len(self._end)] + self._end
        return row.ljust(size, b"\0")

    def _clean(self, text: str) -> str:
        if self._rest_of_cleaning is not None and _CLEAN_TEXT.fullmatch(text):
            return self._rest_of_cleaning(text)
        return self._original.clean_fn(text)

    def _ids(self, chunk: str) -> bytes:
        if len(chunk) > _LONGEST_REMEMBERED:
            return self._chunk_ids(chunk)
        return self._remembered_ids(chunk)

    def _chunk_ids(self, chunk: str) -> bytes:
        """The ids of text without a space, as the bytes of int64s."""
        ids: list[int] = []
        for word in self._original.pat.findall(chunk):
            symbols = "".join(self._original.byte_encoder[byte] for byte in word.encode())
            if symbols in self._specials:
                ids.append(self._original.encoder[symbols])
            else:
                ids += [token.id for token in self._bpe.tokenize(symbols)]
        return _to_bytes(ids)


def _to_bytes(ids: list[int]) -> bytes:
    return array("q", ids).tobytes()
