"""Counted frequencies: the table as a file, and draws that keep a corpus as it is."""

import gzip
import json
import pickle
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from shard_tools.negatives import (
    CaptionedSample,
    FrequencyCounter,
    FrequencyTable,
    NegativeMaker,
    NegativeSettings,
    english,
    frequencies,
    needs_frequencies,
)
from shard_tools.negatives.captions import CaptionText, SampleText
from shard_tools.negatives.frequencies import CountedFrequencies, Frequencies, contexts_of
from shard_tools.negatives.lexicon import Exchange, Lexicon, Word, load_lexicon
from shard_tools.negatives.strategies.base import Task
from shard_tools.negatives.strategies.replace import ConceptReplacement

COLOR = load_lexicon("color")
CONCEPTS = ("object", "color", "size", "location", "attribute", "action", "count")


def _contexts(text: str, lexicon: Lexicon) -> list[str]:
    caption = CaptionText(text)
    (mention,) = caption.mentions(lexicon)
    return contexts_of(lexicon, caption, mention)


@pytest.mark.parametrize(
    "text, concept, contexts",
    [
        ("A big red car.", "color", ["a big _ car", "big _ car", "_ car", ""]),
        ("Red cars", "color", ["^ ^ _ cars", "^ _ cars", "_ cars", ""]),
        ("It is RED.", "color", ["it is _ $", "is _ $", "_ $", ""]),
        ("An old red", "color", ["a old _ $", "old _ $", "_ $", ""]),
        # A relation and a verb hold what they govern, and never stand anywhere.
        (
            "A dog on his two beds.",
            "location",
            ["a dog _ his beds", "dog _ his beds", "_ his beds"],
        ),
        ("A man rides a horse.", "action", ["a man _ a horse", "man _ a horse", "_ a horse"]),
        ("A man rides", "action", ["a man _ $ $", "man _ $ $", "_ $ $"]),
    ],
)
def test_contexts(text: str, concept: str, contexts: list[str]) -> None:
    found = _contexts(text, load_lexicon(concept))
    assert [context.partition("|")[2] for context in found] == contexts
    assert len({context.partition("|")[0] for context in found}) == 1


def test_only_forms_of_one_shape_compete() -> None:
    lexicon = load_lexicon("object")
    one, many = _contexts("A dog.", lexicon)[-1], _contexts("A dogs.", lexicon)[-1]
    assert one != many
    assert _contexts("A cat.", lexicon)[-1] == one
    assert _contexts("A wine.", lexicon)[-1] != one  # exchanges lead from no dog to wine


@pytest.fixture(scope="module")
def images(coco: list[CaptionedSample]) -> list[CaptionedSample]:
    return coco[:300]


def _counter(samples: Sequence[CaptionedSample]) -> FrequencyCounter:
    counter = FrequencyCounter([COLOR, load_lexicon("location")])
    for sample in samples:
        counter.add(sample.captions, sample.objects)
    return counter


def test_equal_counts_are_equal_bytes(images: list[CaptionedSample]) -> None:
    """Whatever the order of counting, and however it was spread over processes."""
    whole = _counter(images).table()
    assert whole.captions == sum(len(sample.captions) for sample in images) > 1500
    for seed in range(2):
        shuffled = random.Random(seed).sample(images, len(images))
        parts = [_counter(shuffled[start::7]) for start in range(7)]
        total = _counter([])
        for part in parts:
            total.update(pickle.loads(pickle.dumps(part)))
        assert total.table().to_bytes() == whole.to_bytes()
        assert total.table().digest == whole.digest
    assert _counter(images[1:]).table().digest != whole.digest


def test_a_table_is_what_was_written(images: list[CaptionedSample]) -> None:
    table = _counter(images).table()
    again = FrequencyTable.from_bytes(table.to_bytes(), "x")
    assert (again.digest, again.captions) == (table.digest, table.captions)
    assert again.to_bytes() == table.to_bytes()
    for sample in images[:50]:
        caption = CaptionText(sample.captions[0])
        for mention in caption.mentions(COLOR):
            before, after = (
                each.frequencies(COLOR).mixture(caption, mention).probability(mention.form)
                for each in (table, again)
            )
            assert before == after > 0


def _changed(table: FrequencyTable, change: Callable[[dict[str, object]], None]) -> bytes:
    value = json.loads(gzip.decompress(table.to_bytes()))
    change(value)
    return gzip.compress(json.dumps(value).encode())


BAD: dict[str, Callable[[FrequencyTable], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"a table",
    "json": lambda t: gzip.decompress(t.to_bytes()),
    "half": lambda t: t.to_bytes()[:-40],
    "broken": lambda t: t.to_bytes()[:60] + b"\x00" * 9 + t.to_bytes()[69:],
    "not UTF-8": lambda _: gzip.compress(b'{"format": "\xff\xfe"}'),
    "a list": lambda _: gzip.compress(b"[1]"),
    "deep": lambda _: gzip.compress(b"[" * 100_000),
    "no JSON": lambda _: gzip.compress(b"{"),
    "another format": lambda t: _changed(t, lambda v: v.update(format=99)),
    "no concepts": lambda t: _changed(t, lambda v: v.pop("concepts")),
    "no captions": lambda t: _changed(t, lambda v: v.pop("captions")),
    "concepts a list": lambda t: _changed(t, lambda v: v.update(concepts=[1])),
    "negative": lambda t: _changed(t, lambda v: _forms(v).update(red=-1)),
    "a half": lambda t: _changed(t, lambda v: _forms(v).update(red=0.5)),
    "a truth": lambda t: _changed(t, lambda v: _forms(v).update(red=True)),
    "a word": lambda t: _changed(t, lambda v: _forms(v).update(red="many")),
    "one number of two": lambda t: _changed(
        t, lambda v: v["concepts"]["color"]["passes"].update({"red>blue": [1]})
    ),
    "no lexicon": lambda t: _changed(t, lambda v: v["concepts"]["color"].pop("lexicon")),
}


def _forms(value: dict[str, object]) -> dict[str, object]:
    contexts = value["concepts"]["color"]["contexts"]  # type: ignore[index]
    return next(iter(contexts.values()))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def small(images: list[CaptionedSample]) -> FrequencyTable:
    return _counter(images[:40]).table()


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_one_line(
    small: FrequencyTable, bad: Callable[[FrequencyTable], bytes]
) -> None:
    with pytest.raises(ValueError, match=r"^s3://b/f\.json\.gz: .*hnpretrain shard count") as error:
        FrequencyTable.from_bytes(bad(small), "s3://b/f.json.gz")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_table_of_another_lexicon_is_refused(small: FrequencyTable) -> None:
    with pytest.raises(ValueError, match=r"^here were counted without lexicon of 'size'; count"):
        small.frequencies(load_lexicon("size"), "here")
    other = Lexicon("color", "adjective", COLOR.words, COLOR.exchanges[:0])
    with pytest.raises(ValueError, match=r"with another lexicon of 'color'; count again"):
        small.frequencies(other)
    with pytest.raises(ValueError, match=r"negatives\.frequencies='t\.gz'.*lexicon of 'size'"):
        NegativeMaker(NegativeSettings(mix={"replace.size": 1}, frequencies="t.gz"), 0, small)


def test_what_needs_a_table() -> None:
    assert needs_frequencies(NegativeSettings())
    assert not needs_frequencies(NegativeSettings(mix={"shuffle.words": 1}))


def _probability(table: FrequencyTable, text: str, word: str) -> float:
    caption = CaptionText(text)
    (mention,) = caption.mentions(COLOR)
    return table.frequencies(COLOR).mixture(caption, mention).probability(COLOR.forms[(word,)])


def test_rare_contexts_fall_back_to_shorter_ones() -> None:
    counter = FrequencyCounter([COLOR])
    for _ in range(30):
        counter.add(("A red car.",))
        counter.add(("A blue boat.",))
    counter.add(("A blue zeppelin.",))
    table = counter.table()
    # 30 occurrences of one form: each of three contexts leaves 1 / 31 to the shorter ones.
    # "a _ car", "_ car" and "^ a _ car" know red alone; all colors are half blue.
    assert _probability(table, "A red car.", "blue") == pytest.approx((1 / 31) ** 3 * 31 / 61)
    assert _probability(table, "A red car.", "red") > 0.999
    # A context that was seen once knows nothing.
    assert _probability(table, "A blue zeppelin.", "blue") == pytest.approx(31 / 61)
    assert _probability(table, "A blue anything else", "red") == pytest.approx(30 / 61)
    # What was never counted is never drawn.
    assert _probability(table, "A red car.", "green") == 0


def test_a_relation_comes_only_where_it_was_seen() -> None:
    lexicon = load_lexicon("location")
    counter = FrequencyCounter([lexicon])
    for _ in range(5):
        counter.add(("A dog on a table.", "Cats under the table."))
    table = counter.table().frequencies(lexicon)
    for text, expected in [("A cat in a table.", {"on"}), ("A cat in a zeppelin.", set())]:
        caption = CaptionText(text)
        (mention,) = caption.mentions(lexicon)
        drawn = table.mixture(caption, mention).draw(400, random.Random(0))
        assert {form.text for form in drawn} == expected


def test_nothing_comes_that_was_never_counted(coco: list[CaptionedSample]) -> None:
    """Every word put in stands somewhere in the corpus, in its group and shape."""
    settings = NegativeSettings(
        mix={f"replace.{concept}": 1 for concept in CONCEPTS}, per_caption=50
    )
    lexicons = {concept: load_lexicon(concept) for concept in CONCEPTS}
    counter = FrequencyCounter(list(lexicons.values()))
    seen = set()
    for sample in coco[:100]:
        counter.add(sample.captions, sample.objects)
        for text in sample.captions:
            for lexicon in lexicons.values():
                for mention in CaptionText(text).mentions(lexicon):
                    seen.add((lexicon.concept, mention.form))
    made = NegativeMaker(settings, 0, counter.table()).make(coco[:100])
    concepts = Counter()
    for result in made:
        for caption in result.captions:
            for negative in caption.negatives:
                lexicon = lexicons[negative.concept]
                source, target = (
                    lexicon.forms[english.Words(text).lower]
                    for text in (negative.source, negative.target)
                )
                assert (negative.concept, target) in seen
                assert source.shape == target.shape
                assert lexicon.groups[source.lemma] == lexicon.groups[target.lemma]
                concepts[negative.concept] += 1
    assert concepts.keys() == set(CONCEPTS)
    assert concepts.total() > 400


# -- The balance: as often as a becomes b, b becomes a.

_ANIMALS = ("dog", "cat", "horse")
ANIMALS = Lexicon(
    "object",
    "noun",
    {animal: Word(animal) for animal in _ANIMALS},
    (Exchange(_ANIMALS, _ANIMALS),),
)
# How often each animal is written in two frames, in percent.
_SHARES = {"A {} by a wall.": (70, 25, 5), "My {} on it.": (10, 60, 30)}
_IMAGES = 6000


def _corpus(annotated: bool) -> list[CaptionedSample]:
    """Captions of one animal; half of the dogs have a cat with them that no caption tells."""
    generator = random.Random(0)
    samples = []
    for number in range(_IMAGES):
        frame, shares = list(_SHARES.items())[number % 2]
        (animal,) = generator.choices(_ANIMALS, shares)
        cat = annotated and animal == "dog" and generator.random() < 0.5
        samples.append(
            CaptionedSample(str(number), (frame.format(animal),), ("cat",) if cat else ())
        )
    return samples


def _imbalance(corpus: list[CaptionedSample], table: Frequencies, draws: int) -> float:
    """Chi-square of "a becomes b as often as b becomes a", of 6 degrees of freedom."""
    strategy = ConceptReplacement(ANIMALS, table, draws)
    flows: Counter[tuple[str, str, str]] = Counter()
    for sample in corpus:
        text = SampleText.of(sample.captions, sample.objects)
        task = Task(text, text.captions[0], Counter(), (0, sample.key, 0, "replace.object"))
        for mention, forms in strategy.begin(task) or []:
            frame = sample.captions[0].replace(mention.form.text, "{}")
            for form in forms:
                flows[frame, mention.form.text, form.text] += 1
    there = [(frame, a, b) for frame in _SHARES for a in _ANIMALS for b in _ANIMALS if a < b]
    assert all(flows[frame, a, b] > 20 and flows[frame, b, a] > 20 for frame, a, b in there)
    return sum(
        (flows[frame, a, b] - flows[frame, b, a]) ** 2 / (flows[frame, a, b] + flows[frame, b, a])
        for frame, a, b in there
    )


def _counted(corpus: list[CaptionedSample]) -> Frequencies:
    counter = FrequencyCounter([ANIMALS])
    for sample in corpus:
        counter.add(sample.captions, sample.objects)
    return counter.table().frequencies(ANIMALS)


# One of a thousand chi-squares of 6 degrees is larger than this.
_BALANCED = 22.5


@pytest.mark.parametrize("draws", [1, 8])
@pytest.mark.parametrize("annotated", [False, True], ids=["", "filtered"])
def test_the_flow_is_balanced(draws: int, annotated: bool) -> None:
    corpus = _corpus(annotated)
    assert _imbalance(corpus, _counted(corpus), draws) < _BALANCED


def test_even_draws_are_not_balanced() -> None:
    assert _imbalance(_corpus(annotated=False), Frequencies(ANIMALS), 1) > 10 * _BALANCED


def test_many_draws_are_balanced_by_the_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above sees what it is there to see."""
    monkeypatch.setattr(frequencies, "_favour", lambda *_: 1.0)
    corpus = _corpus(annotated=False)
    assert _imbalance(corpus, _counted(corpus), 8) > 10 * _BALANCED


def test_filters_are_balanced_by_the_openness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountedFrequencies, "openness", lambda *_: 1.0)
    corpus = _corpus(annotated=True)
    assert _imbalance(corpus, _counted(corpus), 1) > 3 * _BALANCED
