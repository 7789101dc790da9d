"""Lexicon files: the built-in ones hold together, users' extend or replace, bad ones are named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shard_tools.negatives import english
from shard_tools.negatives.lexicon import builtin_concepts, load_lexicon
from shard_tools.negatives.tagger import Tagger
from tests.support.proposals import Proposer

ELEVEN = "white|black|blue|red|green|yellow|brown|gray|orange|pink|purple"
COCO = """
person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign
parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella
handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard
surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange
broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|bed|dining table|toilet|tv|laptop
mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|vase|scissors
teddy bear|hair drier|toothbrush
"""
WORLD = """
apple|ball|bird|boat|book|car|chair|clock|cup|fish|flower|hat|house|key|kite|lamp|mushroom|star
table|tree|truck|umbrella|bench|bus|moon|sun
"""


def _names(table: str) -> set[str]:
    return {name for line in table.split("\n") for name in line.split("|") if name}


def test_builtin_concepts() -> None:
    concepts = ["action", "attribute", "color", "count", "location", "object", "size"]
    assert builtin_concepts() == concepts


@pytest.mark.parametrize("concept", builtin_concepts())
def test_builtin_lexicons_exchange_something_for_every_source(concept: str) -> None:
    lexicon = load_lexicon(concept)
    for exchange in lexicon.exchanges:
        for source in exchange.sources:
            targets = [t for t in exchange.targets if not lexicon.related(source, t)]
            assert targets, f"{concept}: {source} has no target that is not related to it"


def test_objects_of_coco_and_of_the_concept_world_are_known() -> None:
    lexicon = load_lexicon("object")
    known = {" ".join(words) for words in lexicon.forms}
    assert len(_names(COCO)) == 80
    assert not (_names(COCO) | _names(WORLD)) - known


@pytest.mark.parametrize("concept", builtin_concepts())
def test_builtin_exchanges_go_both_ways(concept: str) -> None:
    """Else the words that only come in would tell negatives from captions."""
    lexicon = load_lexicon(concept)
    for lemma, partners in lexicon.partners.items():
        for partner in partners:
            assert lemma in lexicon.partners[partner], f"{concept}: {lemma} -> {partner}"
            assert lexicon.groups[lemma] == lexicon.groups[partner]


def test_the_eleven_basic_colors_are_exchanged() -> None:
    lexicon = load_lexicon("color")
    assert all(lexicon.partners[color] for color in _names(ELEVEN))


@pytest.mark.parametrize(
    "concept, one, other",
    [
        ("object", "man", "person"),
        ("object", "boy", "child"),
        ("object", "boy", "person"),
        ("object", "seagull", "bird"),
        ("object", "bike", "motorcycle"),
        ("object", "table", "desk"),
        ("size", "big", "large"),
        ("size", "small", "tiny"),
        ("color", "red", "orange"),
        ("color", "white", "gray"),
        ("location", "next to", "near"),
        ("location", "under", "below"),
        ("attribute", "stone", "brick"),
        ("action", "sit", "eat"),
        ("count", "two", "couple"),
        ("count", "twelve", "dozen"),
    ],
)
def test_related_words_are_related_both_ways(concept: str, one: str, other: str) -> None:
    lexicon = load_lexicon(concept)
    assert lexicon.related(one, other)
    assert lexicon.related(other, one)


def test_synonyms_are_forms_of_one_word() -> None:
    lexicon = load_lexicon("object")
    for one, other in [("couch", "sofa"), ("car", "taxi"), ("airplane", "jet")]:
        assert lexicon.forms[(one,)].lemma == lexicon.forms[(other,)].lemma


@pytest.mark.parametrize(
    "text, lemma, shape",
    [
        ("rides", "ride", "s"),
        ("riding", "ride", "ing"),
        ("rode", "ride", "past"),
        ("ridden", "ride", "participle"),
        ("sitting", "sit", "ing"),
        ("seated", "sit", "past"),
        ("laying", "lie", "ing"),
        ("laid", "lie", "past"),
        ("carries", "carry", "s"),
        ("took off", "take off", "past"),
    ],
)
def test_forms_of_verbs(text: str, lemma: str, shape: str) -> None:
    form = load_lexicon("action").forms[tuple(text.split())]
    assert (form.lemma, form.shape) == (lemma, shape)


@pytest.mark.parametrize(
    "text, lemma, shape, several",
    [
        ("dog", "dog", "one", False),
        ("puppies", "dog", "many", True),
        ("people", "people", "many", True),
        ("broccoli", "broccoli", "one", True),
        ("sheep", "sheep", "one", False),
        ("rock chairs", "", "", False),
    ],
)
def test_forms_of_nouns(text: str, lemma: str, shape: str, several: bool) -> None:
    form = load_lexicon("object").forms.get(tuple(text.split()))
    if not lemma:
        assert form is None
    else:
        assert form is not None
        assert (form.lemma, form.shape, form.several) == (lemma, shape, several)


def test_mentions_are_the_longest_outside_idioms() -> None:
    lexicon = load_lexicon("object")
    words = english.Words("A hot dog stand, a hot dog by a fire truck and a dog").lower
    found = lexicon.mentions(words)
    assert [" ".join(mention.form.words) for mention in found] == ["hot dog", "fire truck", "dog"]
    assert [words[m.start : m.end] for m in found] == [m.form.words for m in found]
    inside = {form.lemma for form in lexicon.forms_in(words)}
    assert inside == {"dog", "hot dog", "truck"}


@pytest.fixture
def make(tmp_path: Path, tagger: Tagger) -> Callable[..., set[str]]:
    """Writes a lexicon file, and makes all negatives of some captions' first by it."""

    def make(concept: str, text: str, *captions: str) -> set[str]:
        path = tmp_path / f"{concept}.yaml"
        path.write_text(text, encoding="utf-8")
        return Proposer([load_lexicon(concept, str(path))], tagger)(*captions).texts

    return make


def test_a_file_replaces_the_builtin_lexicon(make: Callable[..., set[str]]) -> None:
    text = """
concept: object
role: noun
words: [car, {lemma: ox, plural: oxen}]
exchanges: [{among: [car, ox]}]
"""
    assert make("object", text, "A car beside two dogs.") == {"An ox beside two dogs."}
    assert make("object", text, "Two oxen on a hill.") == {"Two cars on a hill."}


def test_a_file_extends_the_builtin_lexicon(make: Callable[..., set[str]]) -> None:
    text = """
concept: color
extends: builtin
words: [{lemma: chartreuse, near: [green, yellow]}]
exchanges:
  - {from: [chartreuse], to: [black, green]}
"""
    made = make("color", text, "A chartreuse car and a red bus.")
    assert "A black car and a red bus." in made
    assert "A green car and a red bus." not in made  # near
    assert "A chartreuse car and a blue bus." in made  # the built-in exchanges still hold


def test_a_file_brings_a_new_concept(make: Callable[..., set[str]]) -> None:
    text = """
concept: season
role: adjective
words: [wintry, autumnal]
exchanges: [{between: [[wintry], [autumnal]]}]
"""
    assert make("season", text, "A wintry scene.", "A dog.") == {"An autumnal scene."}


BAD = {
    "not YAML": ("concept: [color", "not YAML"),
    "a list": ("- red", "must be a mapping"),
    "another concept": ("concept: size\nrole: adjective", "'size', but it was given as 'color'"),
    "no role": ("concept: color\nwords: [red]", "role: None"),
    "unknown role": ("concept: color\nrole: adverb", "role: 'adverb'"),
    "unknown section": ("concept: color\nrole: adjective\nexchange: []", "mean 'exchanges'"),
    "unknown base": ("concept: color\nextends: mine", "extends: 'mine'"),
    "words no list": ("concept: color\nrole: adjective\nwords: red", "words: must be a list"),
    "a number": ("concept: color\nrole: adjective\nwords: [red, 5]", "words, entry 2"),
    "a truth value": ("concept: color\nrole: adjective\nwords: [on]", "in quotes"),
    "an empty word": ("concept: color\nrole: adjective\nwords: ['']", "words, entry 1"),
    "unknown key": (
        "concept: color\nrole: adjective\nwords: [{lemma: red, als: [x]}]",
        "words, entry 1: unknown key 'als'; did you mean 'also'?",
    ),
    "no lemma": ("concept: color\nrole: adjective\nwords: [{also: [x]}]", "entry 1: lemma"),
    "twice": ("concept: color\nrole: adjective\nwords: [red, red]", "'red' was given before"),
    "form of two": (
        "concept: color\nrole: adjective\nwords: [red, {lemma: rot, also: [red]}]",
        "'red' is given for both",
    ),
    "unknown relative": (
        "concept: color\nrole: adjective\nwords: [{lemma: red, near: [pnik]}, pink]",
        "near: 'pnik' is not under 'words'; did you mean 'pink'?",
    ),
    "bad number": (
        "concept: color\nrole: noun\nwords: [{lemma: red, number: two}]",
        "number 'two' is not one of count, mass, both, plural",
    ),
    "unknown target": (
        "concept: color\nrole: adjective\nwords: [red]\nexchanges: [{from: [red], to: [blu]}]",
        "exchanges, entry 1: 'blu' is not under 'words'",
    ),
    "two kinds": (
        "concept: color\nrole: adjective\nwords: [red]\nexchanges: [{among: [red], to: [red]}]",
        "exchanges, entry 1: needs 'among'",
    ),
    "one side": (
        "concept: color\nrole: adjective\nwords: [red]\nexchanges: [{between: [[red]]}]",
        "two lists",
    ),
    "unknown condition": (
        "concept: color\nrole: adjective\nwords: [red]\nexchanges: [{among: [red], head: [x]}]",
        "unknown key 'head'; did you mean 'heads'?",
    ),
    "scene without holds": (
        "concept: color\nrole: noun\nwords: [red]\nscenes: {sea: {signs: [red]}}",
        "scenes, 'sea': holds",
    ),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_one_line_with_file_and_entry(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_lexicon("color", str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml' is not a file"):
        load_lexicon("color", str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.yaml: not UTF-8"):
        load_lexicon("color", str(tmp_path / "binary.yaml"))


def test_an_unknown_concept_shows_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'color'"):
        load_lexicon("colour")


def test_equal_contents_have_equal_digests(tmp_path: Path) -> None:
    text = "concept: color\nrole: adjective\nwords: [red, blue]\nexchanges: [{among: [red, blue]}]"
    for name in ("a", "b"):
        (tmp_path / name).write_text(text + f"\n# {name}", encoding="utf-8")
    (tmp_path / "c").write_text(text.replace("blue", "teal"), encoding="utf-8")
    a, b, c = (load_lexicon("color", str(tmp_path / name)).digest() for name in "abc")
    assert a == b != c
