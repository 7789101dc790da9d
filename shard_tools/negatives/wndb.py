"""WordNet, read from its own files (`wndb(5)`, `senseidx(5)`, `cntlist(5)`).

1. `index.POS` has one line a word, sorted: found by bisection in the mapped file.
2. Its offsets lead to the lines of `data.POS`: words, pointers, verb frames.
3. `cntlist.rev` says how often each sense was tagged in a corpus; `POS.exc` has irregular forms.

nltk's reader of the same files was tried: importing it takes 1.6 s and 210 MB (it loads
scikit-learn), and it refuses Debian's folder. Here, reading is lazy: what a job's captions need is
a few thousand lines, and workers share the mapped files.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from shard_tools.negatives import english

NOUN, VERB, ADJECTIVE = "noun", "verb", "adj"
_PARTS = (NOUN, VERB, ADJECTIVE)
_CODES = {"n": NOUN, "v": VERB, "a": ADJECTIVE, "s": ADJECTIVE}
_SENSE_TYPES = {"1": NOUN, "2": VERB, "3": ADJECTIVE, "5": ADJECTIVE}
_FILES = (
    "cntlist.rev",
    *(name for part in _PARTS for name in (f"index.{part}", f"data.{part}", f"{part}.exc")),
)
# Debian's and Fedora's folders.
_PACKAGED = ("/usr/share/wordnet", "/usr/share/wordnet-3.0/dict")
# Words in captions are not bounded (names, misspellings); what is kept of them is.
_CACHED = 1 << 16


@dataclass(frozen=True)
class Pointer:
    """A relation to another synset, or between words of both where their numbers are not 0."""

    symbol: str
    part: str
    offset: int
    source: int
    target: int


@dataclass(frozen=True)
class Synset:
    """One meaning.

    Attributes:
        part: of speech: `noun`, `verb` or `adj`.
        offset: its line's place in `data.PART`; with the part, its name.
        file: number of its lexicographer file (`lexnames(5)`): 5 animals, 6 artifacts, 18 people...
        words: lower or upper case as WordNet writes them, "_" between words of a compound.
        pointers: to related meanings.
        frames: numbers of the sentence frames of a verb that hold for all its words.
    """

    part: str
    offset: int
    file: int
    words: tuple[str, ...]
    pointers: tuple[Pointer, ...]
    frames: frozenset[int]

    @property
    def name(self) -> tuple[str, int]:
        return self.part, self.offset


class WordNet:
    """Looks words up. Nothing is written; equal files give equal answers."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: with WordNet's files.

        Raises:
            ValueError: a file is missing or of another format.
        """
        self._folder = folder
        for name in _FILES:
            if not (folder / name).is_file():
                raise ValueError(
                    f"negatives.wordnet: {str(folder)!r} has no {name}; give a folder with the "
                    f"files of WordNet 3 ({', '.join(_FILES[:3])}, ...)"
                )
        self._index = {part: _mapped(folder / f"index.{part}") for part in _PARTS}
        self._data = {part: _mapped(folder / f"data.{part}") for part in _PARTS}
        self._counts = self._read_counts()
        self._lemmas: dict[str, dict[str, str]] = {}
        self._irregular: dict[str, dict[str, tuple[str, ...]]] = {}
        for part in _PARTS:
            self._lemmas[part], self._irregular[part] = self._read_exceptions(part)
        self.senses = lru_cache(_CACHED)(self._senses)
        self.synset = lru_cache(_CACHED)(self._synset)
        self.lemma = lru_cache(_CACHED)(self._lemma)
        self.broader = lru_cache(_CACHED)(self._broader)

    def digest(self) -> str:
        """sha256 hex over the files."""
        digest = hashlib.sha256()
        for name in _FILES:
            digest.update((self._folder / name).read_bytes())
        return digest.hexdigest()

    def _senses(self, word: str, part: str) -> tuple[Synset, ...]:
        """The meanings of a lower-case lemma, the most frequent first; empty if it is not known."""
        line = _line_of(self._index[part], f"{word.replace(' ', '_')} ".encode())
        if line is None or not word:
            return ()
        fields = line.split()
        number = int(fields[2])
        return tuple(self.synset(part, int(offset)) for offset in fields[-number:])

    def count(self, word: str, part: str, sense: int | None = None) -> int:
        """How often a word was tagged, in all its senses or in one (from 0)."""
        counts = self._counts.get((word, part), {})
        return sum(counts.values()) if sense is None else counts.get(sense, 0)

    def usual_part(self, word: str) -> str:
        """The part of speech in which a lemma was tagged most; '' if it never was."""
        counts = {part: self.count(word, part) for part in _PARTS}
        best = max(_PARTS, key=lambda part: counts[part])
        return best if counts[best] else ""

    def _lemma(self, form: str, part: str, shape: str) -> str | None:
        """The known lemma of which this is the form of a shape (see `inflected`), if any."""
        irregular = self._lemmas[part].get(form)
        for lemma in ([irregular] if irregular else []) + sorted(english.stems(form), key=len):
            if self.inflected(lemma, part, shape) == form and self.senses(lemma, part):
                return lemma
        return None

    def inflected(self, lemma: str, part: str, shape: str) -> str:
        """A lemma's form of a shape, as lexicons name them: `many` of a noun; `s` or `ing` of a
        verb; others are the lemma itself."""
        irregular = self._irregular[part].get(lemma, ())
        if shape == "many":
            regular = english.plural(lemma)
            return regular if not irregular or regular in irregular else irregular[0]
        if shape == "ing":
            doubled = [form for form in irregular if form.endswith("ing")]
            return doubled[0] if doubled else english.verb_form(lemma, "ing")
        return english.verb_form(lemma, "s") if shape == "s" else lemma

    def _broader(self, part: str, offset: int) -> frozenset[tuple[str, int]]:
        """Names of a synset and of all that hypernyms lead to from it, at any distance."""
        found = {(part, offset)}
        for other in self.related(self.synset(part, offset), ("@", "@i")):
            found |= self.broader(*other.name)
        return frozenset(found)

    def related(self, synset: Synset, symbols: Iterable[str]) -> list[Synset]:
        """The synsets that its pointers of these symbols lead to."""
        return [
            self.synset(pointer.part, pointer.offset)
            for pointer in synset.pointers
            if pointer.symbol in symbols
        ]

    def antonyms(self, synset: Synset, word: str) -> list[str]:
        """The words that mean the contrary of a word in this meaning."""
        number = synset.words.index(word) + 1 if word in synset.words else 0
        return [
            self.synset(pointer.part, pointer.offset).words[pointer.target - 1]
            for pointer in synset.pointers
            if pointer.symbol == "!" and pointer.source == number and number
        ]

    def _synset(self, part: str, offset: int) -> Synset:
        data = self._data[part]
        end = data.find(b"\n", offset)
        fields = data[offset:end].decode().partition(" | ")[0].split()
        try:
            if int(fields[0]) != offset:
                raise ValueError
            count = int(fields[3], 16)
            words = tuple(word.partition("(")[0] for word in fields[4 : 4 + 2 * count : 2])
            at = 4 + 2 * count
            pointers = []
            for i in range(at + 1, at + 1 + 4 * int(fields[at]), 4):
                symbol, target, code, places = fields[i : i + 4]
                if code in _CODES:  # adverbs are not read
                    source, into = int(places[:2], 16), int(places[2:], 16)
                    pointers.append(Pointer(symbol, _CODES[code], int(target), source, into))
            rest = fields[at + 1 + 4 * int(fields[at]) :]
            frames = frozenset(
                int(rest[i + 1]) for i in range(1, len(rest) - 2, 3) if rest[i + 2] == "00"
            )
            return Synset(part, offset, int(fields[1]), words, tuple(pointers), frames)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"negatives.wordnet: {self._folder / f'data.{part}'} has no synset at byte "
                f"{offset}: the files do not belong together; install WordNet again"
            ) from error

    def _read_counts(self) -> dict[tuple[str, str], dict[int, int]]:
        counts: dict[tuple[str, str], dict[int, int]] = {}
        for line in (self._folder / "cntlist.rev").read_text("utf-8").splitlines():
            key, sense, count = line.split()
            lemma, _, rest = key.partition("%")
            part = _SENSE_TYPES.get(rest[:1])
            if part is not None:
                counts.setdefault((lemma, part), {})[int(sense) - 1] = int(count)
        return counts

    def _read_exceptions(self, part: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        lemmas: dict[str, str] = {}
        forms: dict[str, tuple[str, ...]] = {}
        for line in (self._folder / f"{part}.exc").read_text("utf-8").splitlines():
            form, lemma = line.split()[:2]
            lemmas.setdefault(form, lemma)
            forms[lemma] = (*forms.get(lemma, ()), form)
        return lemmas, forms


def find_wordnet(folder: str) -> WordNet:
    """WordNet in a folder; in '' where packages put it.

    Raises:
        ValueError: there is none.
    """
    if folder:
        return WordNet(Path(folder))
    for place in _places():
        if (place / "index.noun").is_file():
            return WordNet(place)
    raise ValueError(
        "no WordNet is installed: apt-get install wordnet-base, or unpack nltk's corpora/wordnet, "
        "or give the folder with index.noun in negatives.wordnet"
    )


def _places() -> list[Path]:
    """Where packages put WordNet, and where nltk looks for its data."""
    roots = [Path(root) for root in os.environ.get("NLTK_DATA", "").split(os.pathsep) if root]
    roots += [Path.home() / "nltk_data", Path(sys.prefix) / "nltk_data"]
    roots += [Path(f"/usr/{place}/nltk_data") for place in ("share", "local/share", "lib")]
    return [*map(Path, _PACKAGED), *(root / "corpora" / "wordnet" for root in roots)]


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _line_of(data: mmap.mmap, start: bytes) -> str | None:
    """The line of a file of sorted lines that begins so."""
    low, high = 0, len(data)
    while low < high:
        middle = (low + high) // 2
        begin = data.rfind(b"\n", low, middle) + 1 or low
        end = data.find(b"\n", middle)
        end = len(data) if end < 0 else end
        line = data[begin:end]
        if line.startswith(start):
            return line.decode()
        if line < start:
            low = end + 1
        else:
            high = begin
    return None
