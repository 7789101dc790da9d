"""wordnet: the reader of WordNet's files, and the words that it puts in a word's place."""

import shutil
from pathlib import Path

import pytest

from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings, english
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.settings import KINDS
from shard_tools.negatives.strategies.guards import Guards
from shard_tools.negatives.strategies.wordnet import WordNetReplacement
from shard_tools.negatives.tagger import Tagger
from shard_tools.negatives.wndb import ADJECTIVE, NOUN, VERB, WordNet, find_wordnet
from tests.support.strategies import WORDNET, check, make

KEYS = [str(number) for number in range(40)]


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet(WORDNET)


@pytest.fixture(scope="module")
def replace(wordnet: WordNet) -> WordNetReplacement:
    lexicons = [load_lexicon(c) for c in ("object", "color", "size", "attribute", "action")]
    return WordNetReplacement(KINDS["wordnet"], wordnet, Guards(lexicons, wordnet))


def _texts(replace: WordNetReplacement, tagger: Tagger, kind: str, *captions: str) -> set[str]:
    return {t for key in KEYS for t in make(replace, tagger, *captions, key=key).of(kind)}


def test_every_word_of_the_index_is_found(wordnet: WordNet) -> None:
    for part in (NOUN, VERB, ADJECTIVE):
        lines = (WORDNET / f"index.{part}").read_text().splitlines()
        words = [line.split()[0] for line in lines if not line.startswith(" ")]
        assert len(words) > 10
        for word in words:
            senses = wordnet.senses(word, part)
            assert senses
            assert all(word in (w.lower() for w in sense.words) for sense in senses)
        for word in ("", "a", "do", "dogs", "zzz", "~", "\u00e9t\u00e9"):
            assert wordnet.senses(word, part) == ()


def test_meanings(wordnet: WordNet) -> None:
    dog = wordnet.senses("dog", NOUN)[0]
    assert "domestic_dog" in dog.words
    above = {wordnet.synset(*name).words[0] for name in wordnet.broader(*dog.name)}
    assert {"dog", "canine", "animal", "entity"} <= above
    assert wordnet.antonyms(wordnet.senses("man", NOUN)[0], "man") == ["woman"]
    assert wordnet.count("dog", NOUN, 0) == 42
    assert wordnet.usual_part("open") == VERB
    assert wordnet.usual_part("zzz") == ""


def test_forms(wordnet: WordNet) -> None:
    forms = [("geese", NOUN, "many", "goose"), ("knives", NOUN, "many", "knife")]
    forms += [("sitting", VERB, "ing", "sit"), ("lying", VERB, "ing", "lie")]
    forms += [("rides", VERB, "s", "ride"), ("dogs", NOUN, "many", "dog")]
    for form, part, shape, lemma in forms:
        assert wordnet.lemma(form, part, shape) == lemma
        assert wordnet.inflected(lemma, part, shape) == form
    assert wordnet.lemma("dogs", NOUN, "one") is None
    assert wordnet.lemma("zzzs", NOUN, "many") is None


def test_antonyms_come_first(replace: WordNetReplacement, tagger: Tagger) -> None:
    caption = "A small dog is sitting by the door."
    assert _texts(replace, tagger, "adjective", caption) == {"A large dog is sitting by the door."}
    assert _texts(replace, tagger, "verb", caption) <= {
        "A small dog is standing by the door.",
        "A small dog is lying by the door.",
    }
    assert _texts(replace, tagger, "verb", caption)
    assert _texts(replace, tagger, "noun", "The man holds a ball.") == {"The woman holds a ball."}


def test_else_other_kinds_of_one_thing(replace: WordNetReplacement, tagger: Tagger) -> None:
    made = _texts(replace, tagger, "noun", "The benches are by a road.")
    assert made == {f"The {word} are by a road." for word in ("chairs", "couches", "sofas")}
    # A sofa is a couch, and a bed is no seat.
    assert replace._candidates("couch", NOUN)[0] == ("couch", "bench", "chair")


def test_people_have_antonyms_alone(replace: WordNetReplacement, tagger: Tagger) -> None:
    for caption in ("An actor waves.", "A father waves."):
        made = _texts(replace, tagger, "noun", caption)
        assert not any("actor" in text or "father" in text for text in made - {caption})


def test_contraries_that_depend_on_the_meaning_are_left_alone(
    replace: WordNetReplacement, tagger: Tagger
) -> None:
    assert not _texts(replace, tagger, "adjective", "An old car is parked.")
    # WordNet calls green the contrary of ripe.
    assert not _texts(replace, tagger, "adjective", "A green car is parked.")


@pytest.mark.parametrize(
    "caption, other, objects, reason",
    [
        ("A small dog sleeps.", "A large animal on a rug.", (), "mentioned_elsewhere"),
        ("The man holds a ball.", "A woman with a ball.", (), "mentioned_elsewhere"),
        ("A couple. The man holds a ball.", "A lady with a ball.", (), "mentioned_elsewhere"),
        ("The man holds his ball.", "", (), "pronoun"),
        ("The fork is here.", "", ("spoon",), "annotated"),
        ("A man looks at another man.", "", (), "repeated"),
        ("A hot dog on a plate.", "", (), "role"),
        ("The man has no ball.", "", (), "negated"),
        ("The bench is sitting in a park.", "", (), "role"),
    ],
)
def test_what_may_be_true_is_refused(
    replace: WordNetReplacement,
    tagger: Tagger,
    caption: str,
    other: str,
    objects: tuple[str, ...],
    reason: str,
) -> None:
    captions = [caption, other] if other else [caption]
    all_made = [make(replace, tagger, *captions, objects=objects, key=key) for key in KEYS]
    assert sum(made.rejects[reason] for made in all_made)
    if reason != "role":
        assert not any(made.texts for made in all_made)


def test_a_word_is_entered_as_often_as_it_is_left(
    wordnet: WordNet, replace: WordNetReplacement
) -> None:
    targets, ends = replace._candidates("small", ADJECTIVE)
    assert targets == ("small", "large")
    assert list(ends) == [
        wordnet.count("small", ADJECTIVE, 0),
        wordnet.count("small", ADJECTIVE, 0) + wordnet.count("large", ADJECTIVE, 0),
    ]


def test_the_published_mix_runs_on_real_captions(coco: list[CaptionedSample]) -> None:
    settings = NegativeSettings(preset="fscclip", wordnet=str(WORDNET), per_caption=9)
    maker = NegativeMaker(settings, 0, None)
    made = maker.make(coco[:150])
    concepts = {"noun": "object", "adjective": "attribute", "verb": "action"}
    found = set()
    for one in made:
        for caption in one.captions:
            for negative in caption.negatives:
                check(caption.text, negative)
                found.add((negative.strategy, negative.concept))
                if negative.strategy == "wordnet":
                    mentioned = {w for c in one.captions for w in english.Words(c.text).lower}
                    assert negative.target.lower() not in mentioned
    assert found >= {("wordnet", concept) for concept in concepts.values()}
    assert found >= {("shuffle", "order"), ("swap", "attribute")}


def test_wordnet_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"negatives\.wordnet.*has no cntlist\.rev"):
        find_wordnet(str(tmp_path))
    monkeypatch.setattr("shard_tools.negatives.wndb._places", lambda: [tmp_path])
    with pytest.raises(ValueError, match="apt-get install wordnet-base"):
        find_wordnet("")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = tmp_path / "wordnet"
    shutil.copytree(WORDNET, folder)
    data = (folder / "data.noun").read_text()
    (folder / "data.noun").write_text("x" + data)
    with pytest.raises(ValueError, match="install WordNet again"):
        WordNet(folder).senses("dog", NOUN)


def test_where_packages_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_tools.negatives.wndb._PACKAGED", ())
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    shutil.copytree(WORDNET, tmp_path / "corpora" / "wordnet")
    assert find_wordnet("").digest() == WordNet(WORDNET).digest()
