"""A Hugging Face masked language model: what may stand in a caption's gap, and how likely.

1. A caption's word becomes one mask, however many tokens it has.
2. Captions of about one length make a batch.
3. Of the vocabulary, only whole words of letters count, and of those the allowed ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shard_tools.negatives.settings import FillSettings


@dataclass(frozen=True)
class Gap:
    """A caption with characters [start, end) taken out.

    Attributes:
        text: the caption.
        start: of the gap.
        end: of the gap.
        allowed: name of the words that may fill it, see `MaskedModel.allow`.
    """

    text: str
    start: int
    end: int
    allowed: str


class MaskedModel:
    """Fills gaps. What a gap gets does not depend on the other gaps of a call.

    Attributes:
        digest: sha256 hex of its weights and vocabulary, wherever they lie.
        top: how many of the likeliest words a gap gets.
        words: the vocabulary's whole words, by token number; '' where a token is none.
    """

    def __init__(self, settings: FillSettings) -> None:
        """Args:
        settings: which model, and where it runs.

        Raises:
            ValueError: no model was named, it is not there, it is no masked language model, or
                the device is not there.
        """
        if not settings.model:
            raise ValueError(
                "negatives.fill.model is empty: name a Hugging Face masked language model "
                "(distilroberta-base, bert-base-uncased, ...) or its folder"
            )
        try:
            import torch  # here: only `fill` needs it, and it takes seconds
            from transformers import AutoModelForMaskedLM, AutoTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise ValueError(
                f"negatives.fill needs transformers ({error}): pip install 'hnpretrain[hf]'"
            ) from error
        self._torch = torch
        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(settings.model)
            model: Any = AutoModelForMaskedLM.from_pretrained(settings.model, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"negatives.fill.model={settings.model!r} is no masked language model that "
                f"transformers can load, from a folder or by name: {reason}"
            ) from error
        if self._tokenizer.mask_token_id is None:
            raise ValueError(
                f"negatives.fill.model={settings.model!r} has no mask token, so it is no masked "
                "language model; take one like distilroberta-base"
            )
        try:
            self._model = model.eval().to(settings.device)
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"negatives.fill.device={settings.device!r} cannot be used ({reason}); "
                "write cpu, or cuda where there is one"
            ) from error
        self.top = settings.top
        self._device = settings.device
        self._batch_size = settings.batch_size
        self._most_tokens = int(
            min(self._tokenizer.model_max_length, model.config.max_position_embeddings - 2)
        )
        self.words = _whole_words(self._tokenizer, model.config.vocab_size)
        self._numbers = {word: number for number, word in enumerate(self.words) if word}
        self._allowed: dict[str, Any] = {}
        self.digest = self._digest()

    def allow(self, name: str, test: Callable[[str], bool]) -> None:
        """Gives a name to the words of the vocabulary that pass a test; known names are kept."""
        if name not in self._allowed:
            passed = [bool(word) and test(word) for word in self.words]
            self._allowed[name] = self._torch.tensor(passed, device=self._device)

    def fill(self, gaps: Sequence[Gap]) -> list[dict[str, float]]:
        """For each gap the `top` likeliest allowed words and the one taken out, with probabilities.

        They add up to 1; words are in alphabetical order. Empty where the model can't read the
        caption: it is too long, or holds the model's mask already.
        """
        mask = self._tokenizer.mask_token
        texts = [gap.text[: gap.start] + mask + gap.text[gap.end :] for gap in gaps]
        encoded = self._tokenizer(texts)["input_ids"] if texts else []
        readable = [
            i
            for i, ids in enumerate(encoded)
            if len(ids) <= self._most_tokens and ids.count(self._tokenizer.mask_token_id) == 1
        ]
        readable.sort(key=lambda i: len(encoded[i]))
        results: list[dict[str, float]] = [{} for _ in gaps]
        size = self._batch_size
        threads = self._torch.get_num_threads()
        self._torch.set_num_threads(1)  # each worker has one core
        try:
            for start in range(0, len(readable), size):
                batch = readable[start : start + size]
                found = self._fill([gaps[i] for i in batch], [encoded[i] for i in batch])
                for i, words in zip(batch, found, strict=True):
                    results[i] = words
        finally:
            self._torch.set_num_threads(threads)
        return results

    def _fill(self, gaps: Sequence[Gap], encoded: list[list[int]]) -> list[dict[str, float]]:
        torch, device = self._torch, self._device
        batch = self._tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(device)
        places = (batch["input_ids"] == self._tokenizer.mask_token_id).nonzero()
        with torch.inference_mode():
            logits = self._model(**batch).logits
            gap_logits = logits[places[:, 0], places[:, 1]].double()
            allowed = torch.stack([self._allowed[gap.allowed] for gap in gaps])
            originals = [self._numbers.get(gap.text[gap.start : gap.end].lower()) for gap in gaps]
            likely = gap_logits.masked_fill(~allowed, -torch.inf)
            top = likely.topk(min(self.top, likely.shape[1]))
        results = []
        for row, original in enumerate(originals):
            scores = {
                self.words[number]: score
                for number, score in zip(
                    top.indices[row].tolist(), top.values[row].tolist(), strict=True
                )
                if score > -torch.inf
            }
            if original is not None:
                scores[self.words[original]] = float(gap_logits[row, original])
            words = sorted(scores)
            shares = torch.tensor([scores[word] for word in words]).double().softmax(0).tolist()
            results.append(dict(zip(words, shares, strict=True)))
        return results

    def _digest(self) -> str:
        digest = hashlib.sha256("\n".join(self.words).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _whole_words(tokenizer: Any, size: int) -> list[str]:
    """The lower-case word that each token is alone, '' of parts, names and symbols."""
    numbers = range(min(size, len(tokenizer)))
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(list(numbers))]
    # A word's first token says so in byte-level and SentencePiece vocabularies; in WordPiece the
    # others do.
    openings = ("\u0120", "\u2581")
    marked = any(token.startswith(openings) for token in tokens)
    words, seen = [], set()
    for token in tokens:
        word = token[1:] if marked and token.startswith(openings) else "" if marked else token
        whole = word.isascii() and word.isalpha() and word.islower() and word not in seen
        seen.add(word)
        words.append(word if whole else "")
    return words + [""] * (size - len(words))
