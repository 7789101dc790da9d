"""fill: a masked language model's words, drawn so that they cannot be told from the captions'.

The model is tiny: a word-level BERT, trained here for seconds on a few hundred real captions.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings, english
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.settings import KINDS, FillSettings
from shard_tools.negatives.strategies.fill import Fill
from shard_tools.negatives.strategies.guards import Guards
from shard_tools.negatives.strategies.masked_model import Gap, MaskedModel
from shard_tools.negatives.tagger import Tagger
from shard_tools.negatives.wndb import WordNet
from tests.support.strategies import WORDNET, check, make

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGES = 200
STEPS = 60


@pytest.fixture(scope="module")
def folder(coco: list[CaptionedSample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT that has seen some captions."""
    folder = tmp_path_factory.mktemp("bert")
    captions = [text for sample in coco[:IMAGES] for text in sample.captions]
    words = Counter(word for text in captions for word in re.findall(r"[a-z]+", text.lower()))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "##s", "##ing"]
    vocabulary = [*special, *sorted(word for word, count in words.items() if count > 1)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    model = transformers.BertForMaskedLM(config)
    encoded = tokenizer(
        captions, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        seen = encoded[torch.randint(len(encoded), (64,), generator=generator)]
        hidden = (torch.rand(seen.shape, generator=generator) < 0.2) & (seen > 4)
        labels = seen.masked_fill(~hidden, -100)
        ids = seen.masked_fill(hidden, 4)
        model(input_ids=ids, attention_mask=(seen > 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> MaskedModel:
    return MaskedModel(FillSettings(str(folder)))


def _fill(model: MaskedModel, wordnet: WordNet | None = None) -> Fill:
    lexicons = [load_lexicon(c) for c in ("object", "color", "size", "attribute", "action")]
    return Fill(KINDS["fill"], model, Guards(lexicons, wordnet), wordnet)


@pytest.fixture(scope="module")
def fill(model: MaskedModel) -> Fill:
    return _fill(model)


def test_likely_words_and_the_original(model: MaskedModel) -> None:
    model.allow("colors", lambda word: word in ("red", "blue", "green"))
    text = "A white plate on a table."
    ((words), other) = model.fill([Gap(text, 2, 7, "colors"), Gap("A red bus.", 2, 5, "colors")])
    assert set(words) == {"red", "blue", "green", "white"}
    assert set(other) == {"red", "blue", "green"}
    assert list(words) == sorted(words)
    assert sum(words.values()) == pytest.approx(1)
    # It has learned what plates are like.
    assert max(words, key=lambda word: words[word]) == "white"


def test_what_the_model_cannot_read(model: MaskedModel) -> None:
    model.allow("colors", lambda word: word in ("red", "blue", "green"))
    long = "A red bus. " * 50
    masked = "A red bus by a [MASK]."
    assert model.fill([Gap(long, 2, 5, "colors"), Gap(masked, 2, 5, "colors")]) == [{}, {}]
    assert model.fill([]) == []


def test_only_whole_words_of_letters(model: MaskedModel) -> None:
    assert not {"##s", "##ing", "[MASK]", ".", ","} & set(model.words)
    assert "plate" in model.words


@pytest.mark.parametrize("wordnet", [False, True])
def test_words_of_one_kind_and_form(model: MaskedModel, tagger: Tagger, wordnet: bool) -> None:
    fill = _fill(model, WordNet(WORDNET) if wordnet else None)
    caption = "Two dogs are sitting on a white couch."
    made = [make(fill, tagger, caption, key=str(key)) for key in range(60)]
    targets: dict[str, set[str]] = {}
    for one in made:
        for proposal in one.proposals:
            targets.setdefault(proposal.kind, set()).add(proposal.negative.target)
    assert targets["fill.verb"]
    assert all(word.endswith("ing") for word in targets["fill.verb"])
    colors = {word for form in load_lexicon("color").forms for word in form}
    assert targets["fill.adjective"] & colors
    nouns = load_lexicon("object").forms
    for word in targets["fill.noun"]:
        assert (word,) in nouns or wordnet
    concepts = {(p.kind, p.negative.concept) for one in made for p in one.proposals}
    assert concepts == {
        ("fill.noun", "object"),
        ("fill.adjective", "attribute"),
        ("fill.verb", "action"),
    }


def test_never_the_original_nor_what_may_be_true(fill: Fill, tagger: Tagger) -> None:
    captions = ("A man is sitting by a red bus.", "People by a blue vehicle.", "A person waits.")
    for key in range(60):
        made = make(fill, tagger, *captions, objects=("truck",), key=str(key))
        for proposal in made.proposals:
            target = proposal.negative.target
            assert target not in ("man", "person", "people", "sitting", "red", "bus", "truck")
            assert target not in ("blue", "vehicle", "seated")


class _Certain:
    """In a MaskedModel's place: gives every gap one word."""

    digest, top = "certain", 1

    def __init__(self, word: str) -> None:
        self.word = word

    def allow(self, name: str, test: Callable[[str], bool]) -> None: ...

    def fill(self, gaps: Sequence[Gap]) -> list[dict[str, float]]:
        return [{self.word: 1.0} for _ in gaps]


@pytest.mark.parametrize("word, made", [("white", False), ("red", True), ("whites", False)])
def test_where_the_original_comes_up_no_negative_is_made(
    tagger: Tagger, word: str, made: bool
) -> None:
    fill = _fill(_Certain(word))  # type: ignore[arg-type]
    texts = {
        text
        for key in range(9)
        for text in make(fill, tagger, "A white plate.", key=str(key)).of("adjective")
    }
    assert texts == ({"A red plate."} if made else set())


def test_a_caption_without_such_words_gets_none(fill: Fill, tagger: Tagger) -> None:
    assert not make(fill, tagger, "Outside.").texts
    assert not make(fill, tagger, "").texts
    denied = make(fill, tagger, "A man without a dog.")
    assert denied.rejects == {"negated": 1}


def test_batches_change_nothing(coco: list[CaptionedSample], folder: Path) -> None:
    made = []
    for size in (1, 7, 64):
        settings = NegativeSettings(
            preset="ceclip", fill=FillSettings(str(folder), batch_size=size)
        )
        maker = NegativeMaker(settings, 0, None)
        made.append((maker.fingerprint, [one.captions for one in maker.make(coco[:40])]))
    assert made[0] == made[1] == made[2]


def test_the_published_mix_runs_on_real_captions(coco: list[CaptionedSample], folder: Path) -> None:
    settings = NegativeSettings(preset="ceclip", fill=FillSettings(str(folder)))
    made = NegativeMaker(settings, 0, None).make(coco[:150])
    concepts = Counter[str]()
    for one in made:
        mentioned = {word for c in one.captions for word in english.Words(c.text).lower}
        for caption in one.captions:
            for negative in caption.negatives:
                check(caption.text, negative)
                concepts[negative.concept] += 1
                if negative.strategy == "fill":
                    assert "mask" not in negative.text.lower()
                    assert negative.target.lower() not in mentioned
    assert min(concepts[c] for c in ("object", "attribute", "action")) > 20
    assert concepts["relation"] > 1


def test_weights_and_top_are_part_of_the_identity(model: MaskedModel, folder: Path) -> None:
    same, other = (MaskedModel(FillSettings(str(folder), top=top)) for top in (20, 5))
    assert _fill(same).identity == _fill(model).identity != _fill(other).identity
    with torch.no_grad():
        next(same._model.parameters()).add_(1)
    assert same._digest() != model.digest


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, r"negatives\.fill\.model is empty"),
        ({"model": "no/such/folder"}, r"negatives\.fill\.model='no/such/folder' is no masked"),
        ({"device": "quantum"}, r"negatives\.fill\.device='quantum'"),
    ],
)
def test_models_that_are_not_there(
    folder: Path, settings: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = FillSettings(**{"model": str(folder) if settings else "", **settings})
    with pytest.raises(ValueError, match=message) as error:
        MaskedModel(given)
    assert "\n" not in str(error.value)
