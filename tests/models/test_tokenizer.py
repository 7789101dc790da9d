"""The fast tokenizer gives, for every text, the ids of open_clip's SimpleTokenizer."""

import gzip
import json
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from torch.utils.data import DataLoader, Dataset

from hnpretrain.models import tokenizer as module
from hnpretrain.models.tokenizer import FastTokenizer, fast_tokenizer

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets"
MODES = ["lower", "whitespace", "canonicalize"]

many = settings(max_examples=400, deadline=None, derandomize=True)
# What an expression, a cleaning or a BPE may stumble over.
FRAGMENTS = [
    *("a", "cat", "The", "DOG", "xylophonists", "aaaaaaaa", "7", "2024", "½", "٣"),
    *("'s", "'S", "'LL", "'ve", "'", "''", "'ſ", "\u2019s", "\u212a", "İ", "ΟΔΟΣ", "ß"),
    *(
        "&amp;",
        "&lt;",
        "&amp;lt;",
        "&",
        "&#39;",
        "&#x1c;",
        "&#xd800;",
        "&nbsp",
        "&EACUTE;",
        "<",
        ";",
    ),
    *("<start_of_text>", "<END_OF_TEXT>", "<end_of_text", "</w>", "<mask>", "<MASK>", "_", "..."),
    *(" ", "  ", "\t", "\n", "\r\n", "\f", "\v", "\x1c", "\x85", "\xa0", "\u3000", "\u2028"),
    *(
        "\0",
        "\x07",
        "\x7f",
        "\x1b[31m",
        "\ufeff",
        "\ud83d",
        "\udca9",
        "Ã©",
        "â€™",
        "ﬁ",
        "ｶﾞ",
        "e\u0301",
    ),
    *("日本語", "안녕", "привет", "नमस्ते", "🙂", "👩\u200d🚀", "𝔸", "\U0010ffff"),
]


@cache
def pair(clean="lower", length=77, specials=()):
    """A tokenizer of open_clip and its fast one."""
    slow = SimpleTokenizer(
        additional_special_tokens=list(specials), context_length=length, clean=clean
    )
    fast = fast_tokenizer(slow)
    assert type(fast) is FastTokenizer
    return slow, fast


def assert_equal(texts, *made_with, **options):
    slow, fast = pair(*made_with, **options)
    expected, got = slow(texts), fast(texts)
    assert got.dtype == expected.dtype == torch.int64
    assert got.shape == expected.shape
    differ = (got != expected).any(dim=1).tolist()
    assert not any(differ), [text for text, is_other in zip(texts, differ, strict=True) if is_other]


@cache
def captions():
    with gzip.open(ASSETS / "coco_captions_val2017.json.gz", "rt") as file:
        texts = [annotation["caption"] for annotation in json.load(file)["annotations"]]
    for path in sorted((ASSETS / "sugarcrepe" / "data").glob("*.json")):
        for row in json.loads(path.read_text()).values():
            texts += [row["caption"], row["negative_caption"]]
    for line in (ASSETS / "coco_ccby" / "data.jsonl").read_text().splitlines():
        texts += json.loads(line)["captions"]
    for line in (ROOT / "docs" / "photo-negatives.jsonl").read_text().splitlines():
        row = json.loads(line)
        texts += [row["caption"], row["negative"]]
    return texts


def test_all_captions_and_negatives_at_hand():
    texts = captions()
    assert len(texts) > 40_000
    assert_equal(texts)


@pytest.mark.parametrize("clean", MODES)
@many
@given(text=st.text(st.characters(exclude_categories=())))
def test_any_text(clean, text):
    assert_equal([text], clean)


@pytest.mark.parametrize("clean", MODES)
@many
@given(text=st.text(st.characters(max_codepoint=127)))
def test_ascii(clean, text):
    assert_equal([text], clean)


@pytest.mark.parametrize("specials", [(), ("<mask>", "dog")])
@pytest.mark.parametrize("clean", MODES)
@many
@given(fragments=st.lists(st.sampled_from(FRAGMENTS)))
def test_awkward_text(clean, specials, fragments):
    assert_equal(["".join(fragments)], clean, specials=specials)


@pytest.mark.parametrize("clean", MODES)
def test_each_code_point(clean):
    # The planes past the third are empty, or private, but for a few marks that are not seen.
    starts = [*range(0, 0x30000, 128), 0xE0000, 0xE0100, sys.maxunicode - 127]
    texts = [" ".join(f"a{chr(start + i)}" for i in range(128)) for start in starts]
    assert_equal(texts, clean, length=1000)


def test_words_of_the_vocabulary_joined():
    slow, _ = pair()
    draw = random.Random(0)
    tokens = [slow.decode([token_id]).strip() for token_id in range(512, slow.vocab_size - 2)]
    assert_equal(["".join(draw.choices(tokens, k=4)) for _ in range(10_000)])


@pytest.mark.parametrize("length", [1, 2, 3, 32, 64, 77])
def test_texts_around_the_cut(length):
    texts = [" ".join(["cat"] * words) for words in range(length + 2)]
    assert_equal([*texts, "cat" * 5000, "cat " * 5000], length=length)


def test_no_texts_and_one_without_a_list():
    slow, fast = pair()
    assert fast([]).shape == slow([]).shape == (0, 77)
    assert_equal(["", " ", "\n"])
    assert torch.equal(fast("a cat"), slow("a cat"))


def test_ids_can_be_written_to():
    _, fast = pair()
    first = fast(["a cat"])
    kept = first.clone()
    first.zero_()
    assert torch.equal(fast(["a cat"]), kept)


@pytest.mark.parametrize("clean", MODES)
def test_plain_text_is_not_cleaned_in_vain(clean, monkeypatch):
    _, fast = pair(clean)
    monkeypatch.setattr(ftfy, "fix_text", None)
    fast(["Two dogs' 1st walk: \"a mile\" - <b>isn't</b> it?\r\n\tYes; #1 (100%)!"])
    with pytest.raises(TypeError):
        fast(["caf\xe9"])


def test_a_way_to_clean_that_is_not_open_clip_s():
    slow = SimpleTokenizer()
    slow.clean_fn = lambda text: text.replace("e", " \x1c ")
    fast = fast_tokenizer(slow)
    assert type(fast) is FastTokenizer
    texts = ["The  Fence\x1c\x1d is\tgreen", "e"]
    assert torch.equal(fast(texts), slow(texts))


def test_chunks_that_were_forgotten(monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED_CHUNKS", 3)
    slow = SimpleTokenizer()
    texts = ["a red car and a blue car", "a blue car and a dog", "a red car"] * 2
    assert torch.equal(fast_tokenizer(slow)(texts), slow(texts))


class Subclass(SimpleTokenizer):
    pass


@pytest.mark.parametrize(
    "other",
    [
        lambda texts: torch.zeros(len(texts), 1),
        Subclass(),
        SimpleTokenizer(reduction_mask="random"),
        SimpleTokenizer(context_length=None),
        SimpleTokenizer(additional_special_tokens=["<|mask|>"]),
        SimpleTokenizer(additional_special_tokens=["two words"]),
        SimpleTokenizer(additional_special_tokens=[""]),
    ],
)
def test_others_are_returned_as_they_are(other):
    assert fast_tokenizer(other) is other


def learnt(tmp_path, *merges):
    path = tmp_path / "merges.gz"
    path.write_bytes(gzip.compress("\n".join(["a header", *merges]).encode()))
    return SimpleTokenizer(bpe_path=str(path))


def test_another_vocabulary(tmp_path):
    slow = learnt(tmp_path, "t h", "th e</w>", "a t</w>", "h e</w>")
    fast = fast_tokenizer(slow)
    assert type(fast) is FastTokenizer
    texts = ["the the hat that heath he theathe", ""]
    assert torch.equal(fast(texts), slow(texts))


@pytest.mark.parametrize(
    "merges",
    [
        ("a b", ""),  # a blank line
        ("x ab", "a b"),  # "ab" is used before it is made
        ("ab c",),  # "ab" is never made
    ],
)
def test_merges_that_may_not_be_applied_alike(tmp_path, merges):
    slow = learnt(tmp_path, *merges)
    assert fast_tokenizer(slow) is slow


def test_pickling():
    slow, fast = pair(length=32)
    copy = pickle.loads(pickle.dumps(fast))
    texts = ["a cat on a mat", "caf\xe9 &amp; bar", "cat " * 100]
    assert torch.equal(copy(texts), slow(texts))


def test_several_threads():
    slow, _ = pair()
    fast = fast_tokenizer(slow)
    texts = captions()[:2000]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(fast, [[text] for text in texts]))
    assert torch.equal(torch.cat(got), slow(texts))


class Texts(Dataset):
    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts = tokenizer, texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return self.tokenizer(self.texts[index : index + 1])[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers(start, monkeypatch, capfd):
    # open_clip sets it for all; without it, the package warns of a fork after it started threads.
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    slow, fast = pair()
    texts = captions()[:64]
    fast(texts)
    loader = DataLoader(Texts(fast, texts), 16, num_workers=2, multiprocessing_context=start)
    assert torch.equal(torch.cat(list(loader)), slow(texts))
    assert "tokenizers" not in capfd.readouterr().err
