"""Token trees hold every text, share what texts begin with, and waste little."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnpretrain.bench.captions import read_captions
from hnpretrain.data.texts import ROW_LENGTH, TextLayout, TextRows
from hnpretrain.data.trees import MULTIPLE, TokenTrees, plant
from hnpretrain.models.tokenizer import fast_tokenizer

ASSETS = Path(__file__).parents[1] / "assets"
END = 9


def laid_out(texts, row_length, words=False):
    """Texts as lists of ids, or None; (B, C) of them."""
    longest = max(len(text) for sample in texts for text in sample if text)
    tokens = np.full((len(texts), len(texts[0]), longest + 2), 7)  # what must not matter
    lengths = np.zeros(tokens.shape[:2], dtype=np.int64)
    for b, sample in enumerate(texts):
        for c, text in enumerate(sample):
            if text is not None:
                tokens[b, c, : len(text)] = text
                lengths[b, c] = len(text)
    mask = np.array([[text is not None for text in sample] for sample in texts])
    return plant(tokens, lengths, mask, row_length, words)


def read_back(trees: TokenTrees, b: int, c: int) -> list[int]:
    """The text that the attention mask shows to the end token, by position."""
    row, query = divmod(int(trees.place_BC[b, c]), trees.query_RQ.shape[1])
    end = int(trees.query_RQ[row, query])
    column_L = torch.arange(trees.token_RL.shape[1])
    (seen,) = torch.where((column_L <= end) & (end < trees.until_RL[row]))
    assert trees.position_RL[row, seen].tolist() == list(range(len(seen)))
    return trees.token_RL[row, seen].tolist()


words_of = st.lists(st.integers(1, 3), max_size=6).map(lambda ids: [8, *ids, END])
samples = st.integers(1, 4).flatmap(
    lambda C: st.lists(
        st.tuples(words_of, *[st.none() | words_of] * (C - 1)), min_size=1, max_size=12
    )
)


@settings(max_examples=300, deadline=None)
@given(samples, st.sampled_from([0, 8, 9, 16, 24, 64]))
def test_every_text_is_read_back(texts, row_length):
    trees = laid_out(texts, row_length, words=True)
    assert trees.token_RL.shape[1] % MULTIPLE == 0
    assert row_length == 0 or trees.token_RL.shape[1] < row_length + MULTIPLE
    for b, sample in enumerate(texts):
        for c, text in enumerate(sample):
            expected = sample[0] if text is None else text
            assert read_back(trees, b, c) == expected
            places = trees.word_BCW[b, c, : len(expected)]
            assert trees.token_RL.flatten()[places].tolist() == expected
            inside = trees.word_mask_BCW[b, c].nonzero().flatten().tolist()
            assert inside == ([] if text is None else list(range(1, len(text))))


@settings(max_examples=100, deadline=None)
@given(samples)
def test_nothing_is_stored_twice_in_a_row(texts):
    trees = laid_out(texts, 64)
    for row in range(len(trees.token_RL)):
        paths = set()
        for column in range(int((trees.token_RL[row] != 0).sum())):
            ancestors = [k for k in range(column + 1) if column < trees.until_RL[row, k]]
            paths.add(tuple(trees.token_RL[row, ancestors].tolist()))
        assert len(paths) == int((trees.token_RL[row] != 0).sum())


def test_one_tree():
    """The drawing of docs/token-trees.md."""
    a, red, blue, car, bus = 1, 2, 3, 4, 5
    start = 8
    caption = [start, a, red, car, END]
    trees = laid_out([[caption, [start, a, blue, car, END], [start, a, red, bus, END]]], 16)
    assert trees.token_RL.tolist() == [
        [start, a, red, car, END, bus, END, blue, car, END] + [0] * 6
    ]
    assert trees.position_RL.tolist() == [[0, 1, 2, 3, 4, 3, 4, 2, 3, 4] + [0] * 6]
    assert trees.until_RL[0, :10].tolist() == [16, 16, 7, 5, 5, 7, 7, 16, 16, 16]
    assert trees.query_RQ.tolist() == [[4, 6, 9]]
    assert trees.place_BC.tolist() == [[0, 2, 1]]


def test_a_text_fills_the_longest_row():
    """Where the context is longer than rows usually are, and no multiple of anything."""
    token_BCL = torch.arange(1, 301).expand(2, 1, 300).clone()
    token_BCL[1, 0, 5] = 7
    trees = TextLayout("trees").lay_out(token_BCL, torch.ones(2, 1, dtype=torch.bool))
    assert trees.token_RL.shape == (2, 304)
    for b in (0, 1):
        assert read_back(trees, b, 0) == token_BCL[b, 0].tolist()


def test_a_text_that_is_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a text of 9 tokens does not fit into a row of 8"):
        laid_out([[[8, *[1] * 7, END]]], 8)


def coco_batch(size, negatives, seed=0):
    """Real captions, and negatives with one word in another's place."""
    captions = read_captions(str(ASSETS / "coco_captions_val2017.json.gz"))
    rows = captions.draw(size, negatives, seed)
    tokenizer = fast_tokenizer(open_clip.get_tokenizer("ViT-B-32"))
    return torch.stack([tokenizer(row) for row in rows])


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("negatives", [0, 1, 4, 8])
def test_padding_of_real_captions_is_small(size, negatives):
    """Beyond the tokens of one trie of all texts come breaks between rows, and their ends."""
    tokens_BCL = coco_batch(size, negatives)
    mask_BC = torch.ones(tokens_BCL.shape[:2], dtype=torch.bool)
    trees = TextLayout("trees").lay_out(tokens_BCL, mask_BC)
    lengths = tokens_BCL.argmax(dim=2) + 1
    prefixes = {
        tuple(text[: d + 1].tolist())
        for text, length in zip(tokens_BCL.flatten(0, 1), lengths.flatten(), strict=True)
        for d in range(length)
    }
    assert trees.tokens < 1.08 * len(prefixes) + MULTIPLE * len(trees.token_RL)
    assert trees.token_RL.shape[1] <= ROW_LENGTH


def test_trimmed_rows_are_as_long_as_the_longest_text():
    tokens_BCL = coco_batch(16, 2)
    mask_BC = torch.ones(16, 3, dtype=torch.bool)
    mask_BC[3, 1:] = False
    longest = int(tokens_BCL.argmax(dim=2).max()) + 1
    trees = TextLayout("trimmed").lay_out(tokens_BCL, mask_BC)
    assert len(trees.token_RL) == 46
    assert longest <= trees.token_RL.shape[1] < longest + MULTIPLE
    rows = TextLayout("trimmed", causal=False, pad_id=0).lay_out(tokens_BCL, mask_BC)
    assert isinstance(rows, TextRows)
    assert rows.token_NL.shape == (46, longest)
    padded = TextLayout("padded").lay_out(tokens_BCL, mask_BC)
    assert isinstance(padded, TextRows)
    assert padded.token_NL.shape == (46, 77)
    for laid in (rows, padded):
        assert laid.place_BC[3].tolist() == [9, 9, 9]
        for b, c in ((0, 0), (2, 1), (15, 2)):
            row = laid.token_NL[laid.place_BC[b, c]]
            assert torch.equal(row, tokens_BCL[b, c, : len(row)])


def test_the_first_end_token_ends_a_text():
    tokens = torch.tensor([[[8, 1, END, 2, END, 0], [8, 1, 2, 3, 1, 2]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    by_highest = TextLayout("trees").lay_out(tokens, mask)
    by_end = TextLayout("trees", end_id=END).lay_out(tokens, mask)
    assert read_back(by_highest, 0, 0) == read_back(by_end, 0, 0) == [8, 1, END]
    # A text without one is read at its highest id, or at its first token: as open_clip does.
    assert read_back(by_highest, 0, 1) == [8]
    assert read_back(by_end, 0, 1) == [8]
