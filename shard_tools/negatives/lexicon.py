"""Lexicons: which words a concept has, how they are related, and what may replace what.

A lexicon is one YAML file a concept (format: docs/negatives.md). The built-in ones lie in
`shard_tools/lexicons/`; a user's file replaces the built-in one, or extends it if it says
`extends: builtin`. Everything is checked when a file is read, so that a misspelled word is an
error with its file and entry, never a strange negative.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import yaml

from hnpretrain.config import nearest
from shard_tools.negatives import english

ROLES = ("noun", "adjective", "relation", "verb", "number")
NUMBERS = ("count", "mass", "both", "plural")
GENDERS = ("", "male", "female")
OBJECTS = ("required", "absent", "any")
_SECTIONS = ("concept", "role", "extends", "words", "exchanges", "scenes", "idioms")
_CONDITIONS = ("heads", "not_heads", "after", "not_after", "before", "not_before")


@dataclass(frozen=True)
class Word:
    """One meaning, and the forms that count as it.

    Attributes:
        lemma: its name and its first form; more than one word is fine.
        also: synonyms and narrower kinds, forms like the lemma.
        number: of a noun: `count`, `mass` ('luggage'), `both` ('cake'), `plural` ('scissors').
        plural: irregular plural of the lemma, where the rules of English give a wrong one.
        past: irregular past of a verb; its participle too unless that is given.
        participle: irregular participle of a verb ('ridden').
        ing: irregular -ing form of a verb.
        is_a: broader words of this lexicon.
        near: words of this lexicon that can be true of the same thing; holds both ways.
        gender: of a person, `male` or `female`: pronouns must agree with it.
        ambiguous: the form often means something else: a noun then needs a determiner ('glass'),
            an adjective a noun that it describes ('orange').
    """

    lemma: str
    also: tuple[str, ...] = ()
    number: str = "count"
    plural: str = ""
    past: str = ""
    participle: str = ""
    ing: str = ""
    is_a: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    gender: str = ""
    ambiguous: bool = False

    def plural_form(self) -> str:
        return self.plural or english.plural(self.lemma)

    def verb_forms(self) -> dict[str, str]:
        """Shape to the lemma's form of it. `past` is the participle too unless they differ."""
        verb, _, rest = self.lemma.partition(" ")  # "lie down" -> "lying down"
        forms = {
            "base": verb,
            "s": english.verb_form(verb, "s"),
            "ing": self.ing or english.verb_form(verb, "ing"),
            "past": self.past or english.verb_form(verb, "past"),
            "participle": self.participle,
        }
        return {shape: f"{form} {rest}".strip() for shape, form in forms.items() if form}


@dataclass(frozen=True)
class Exchange:
    """Any word of `sources` may be replaced by any of `targets` where the conditions hold.

    Conditions look at the caption's other words, as they stand or as lemmas; an empty one asks
    for nothing. What heads, after and before are is said at `roles.Use`.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    heads: frozenset[str] = frozenset()
    not_heads: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    not_after: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()
    not_before: frozenset[str] = frozenset()
    object: str = "required"


@dataclass(frozen=True)
class Scene:
    """What a scene may hold unmentioned (`holds`) once one of `signs` is mentioned."""

    name: str
    signs: tuple[str, ...]
    holds: frozenset[str]


@dataclass(frozen=True)
class Form:
    """A way to write a word. Only forms of one shape can replace each other.

    Attributes:
        lemma: of its word.
        text: as the lexicon writes it.
        words: its lower-case words.
        shape: of a noun `one` or `many`, as the verb agrees with it; of a verb `base`, `s`, `ing`,
            `past` or `participle`; else ''.
        several: whether it may speak of several things ('dogs', but also 'fruit').
    """

    lemma: str
    text: str
    words: tuple[str, ...]
    shape: str = ""
    several: bool = False


@dataclass(frozen=True)
class Mention:
    """A form found in a text: words [start, end)."""

    form: Form
    start: int
    end: int


@dataclass
class Lexicon:
    """One concept's words, checked and indexed.

    Attributes:
        concept: what its edits change.
        role: of ROLES: how a word must be used to be replaced.
        words: by lemma.
        exchanges: in the file's order.
        scenes: see Scene.
        idioms: phrases, as tuples of lower-case words, inside which nothing is replaced.
        forms: every written form, by its words.
        partners: lemma to the lemmas that some exchange puts in its place.
        groups: lemma to a name of all words that exchanges lead to from it, at any distance; of
            words that are never exchanged there is none.
    """

    concept: str
    role: str
    words: dict[str, Word]
    exchanges: tuple[Exchange, ...]
    scenes: tuple[Scene, ...] = ()
    idioms: frozenset[tuple[str, ...]] = frozenset()
    forms: dict[tuple[str, ...], Form] = field(init=False)
    partners: dict[str, frozenset[str]] = field(init=False)
    groups: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.forms = _forms(self.words.values(), self.role)
        self._starting = _by_first_word(self.forms, self.idioms)
        self._broader = {lemma: self._ancestors(lemma) for lemma in self.words}
        self._narrower: dict[str, set[str]] = {lemma: set() for lemma in self.words}
        self._near: dict[str, set[str]] = {lemma: set() for lemma in self.words}
        for lemma, word in self.words.items():
            for broader in self._broader[lemma]:
                self._narrower[broader].add(lemma)
            for other in word.near:
                self._near[lemma].add(other)
                self._near[other].add(lemma)
        self._families = {
            lemma: frozenset({lemma, *self._narrower[lemma], *self._near[lemma]})
            for lemma in self.words
        }
        self._exchanges_of: dict[str, list[Exchange]] = {lemma: [] for lemma in self.words}
        for exchange in self.exchanges:
            for source in exchange.sources:
                self._exchanges_of[source].append(exchange)
        self.partners = {
            lemma: frozenset(
                target
                for exchange in self._exchanges_of[lemma]
                for target in exchange.targets
                if not self.related(lemma, target)
            )
            for lemma in self.words
        }
        self.groups = _groups(self.partners)
        self._held: dict[str, frozenset[str]] = {}
        for scene in self.scenes:
            for sign in scene.signs:
                self._held[sign] = self._held.get(sign, frozenset()) | scene.holds

    def mentions(self, words: Sequence[str]) -> list[Mention]:
        """The lexicon's forms in a text's words, left to right, longest first, idioms left out."""
        found: list[Mention] = []
        after = 0
        for start in self._starts(words):
            if start < after:
                continue
            for phrase, form in self._starting[words[start]]:
                end = start + len(phrase)
                if len(phrase) == 1 or tuple(words[start:end]) == phrase:
                    if form is not None:
                        found.append(Mention(form, start, end))
                    after = end
                    break
        return found

    def forms_in(self, words: Sequence[str]) -> Iterator[Form]:
        """Every form that stands in a text's words, also inside idioms and longer forms."""
        for start in self._starts(words):
            for phrase, form in self._starting[words[start]]:
                if form is not None and tuple(words[start : start + len(phrase)]) == phrase:
                    yield form

    def _starts(self, words: Sequence[str]) -> list[int]:
        """Places of the words that a form or an idiom begins with."""
        starting = self._starting
        return [start for start, word in enumerate(words) if word in starting]

    def family(self, lemma: str) -> frozenset[str]:
        """The word, what is narrower, and what can be true of the same thing."""
        return self._families[lemma]

    def held_with(self, lemmas: Iterable[str]) -> frozenset[str]:
        """What may be in a picture unmentioned where these words are mentioned."""
        return frozenset().union(*(self._held[sign] for sign in lemmas if sign in self._held))

    def broader(self, lemma: str) -> frozenset[str]:
        """All words that `is_a` leads to, at any distance."""
        return self._broader[lemma]

    def narrower(self, lemma: str) -> set[str]:
        """All words from which `is_a` leads here."""
        return self._narrower[lemma]

    def near(self, lemma: str) -> set[str]:
        """The words that can be true of the same thing."""
        return self._near[lemma]

    def exchanges_of(self, lemma: str) -> Sequence[Exchange]:
        """The exchanges that may replace this word."""
        return self._exchanges_of[lemma]

    def related(self, one: str, other: str) -> bool:
        """Whether both words can be true of one thing: synonym, hypernym, hyponym or near."""
        return (
            one == other
            or other in self._broader[one]
            or other in self._narrower[one]
            or other in self._near[one]
        )

    def digest(self) -> str:
        """sha256 hex over the contents; files that say the same give the same digest."""
        contents = {
            "concept": self.concept,
            "role": self.role,
            "words": [_plain(word) for word in self.words.values()],
            "exchanges": [_plain(exchange) for exchange in self.exchanges],
            "scenes": [_plain(scene) for scene in self.scenes],
            "idioms": sorted(self.idioms),
        }
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

    def _ancestors(self, lemma: str) -> frozenset[str]:
        found: set[str] = set()
        waiting = list(self.words[lemma].is_a)
        while waiting:
            broader = waiting.pop()
            if broader not in found:
                found.add(broader)
                waiting.extend(self.words[broader].is_a)
        return frozenset(found)


def builtin_concepts() -> list[str]:
    """The concepts that have a lexicon of the project's own, sorted."""
    folder = resources.files("shard_tools") / "lexicons"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_lexicon(concept: str, path: str | None = None) -> Lexicon:
    """Reads the lexicon of a concept: the built-in one, or a user's file.

    Args:
        concept: its name; a user's file may bring a new one.
        path: a YAML file that replaces the built-in lexicon, or extends it (`extends: builtin`).

    Raises:
        ValueError: no such concept or file, or a file that is not of the format; the message
            names the file and the entry.
    """
    if path is None:
        if concept not in builtin_concepts():
            raise ValueError(
                f"no lexicon for concept {concept!r}: built in are {', '.join(builtin_concepts())}"
                f"{nearest(concept, builtin_concepts())}; give a file for another one in "
                f"negatives.lexicons"
            )
        return _Reader(f"lexicons/{concept}.yaml").read(_builtin_text(concept), concept)
    if not Path(path).is_file():
        raise ValueError(f"lexicon of {concept!r}: {path!r} is not a file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"lexicon {path}: not UTF-8 text ({error})") from error
    return _Reader(path).read(text, concept)


def _builtin_text(concept: str) -> str:
    return (resources.files("shard_tools") / "lexicons" / f"{concept}.yaml").read_text("utf-8")


class _Reader:
    """Reads and checks one file; `where` opens every message."""

    def __init__(self, where: str) -> None:
        self.where = where

    def read(self, text: str, concept: str) -> Lexicon:
        sections = self._sections(text)
        base: dict[str, Any] = {}
        if "extends" in sections:
            if sections["extends"] != "builtin":
                self._fail(f"extends: {sections['extends']!r} is not known; write 'builtin'")
            if concept not in builtin_concepts():
                self._fail(f"extends: there is no built-in lexicon of {concept!r} to extend")
            base = yaml.safe_load(_builtin_text(concept))
        if sections.get("concept") != concept:
            self._fail(f"concept: is {sections.get('concept')!r}, but it was given as {concept!r}")
        role = sections.get("role", base.get("role"))
        if role not in ROLES:
            self._fail(f"role: {role!r} is not one of {', '.join(ROLES)}")

        words: dict[str, Word] = {}
        for entry in _entries(base.get("words")):
            word = self._word(entry, "words")
            words[word.lemma] = word
        own: set[str] = set()
        for number, entry in enumerate(self._list(sections, "words"), start=1):
            word = self._word(entry, f"words, entry {number}")
            if word.lemma in own:
                self._fail(f"words, entry {number}: {word.lemma!r} was given before")
            own.add(word.lemma)
            words[word.lemma] = word
        for word in words.values():
            for name in ("is_a", "near"):
                self._known(getattr(word, name), words, f"words, {word.lemma!r}: {name}")
        self._one_word_a_form(words.values())

        exchanges: list[Exchange] = []
        entries = [*_entries(base.get("exchanges")), *self._list(sections, "exchanges")]
        for number, entry in enumerate(entries, start=1):
            # An extending file's entries are counted from its own first.
            number -= len(_entries(base.get("exchanges")))
            exchanges.extend(self._exchange(entry, words, f"exchanges, entry {number}"))
        scenes = {**(base.get("scenes") or {}), **self._mapping(sections, "scenes")}
        idioms = [*_entries(base.get("idioms")), *self._list(sections, "idioms")]
        return Lexicon(
            concept=concept,
            role=role,
            words=words,
            exchanges=tuple(exchanges),
            scenes=tuple(self._scene(name, scene, words) for name, scene in scenes.items()),
            idioms=frozenset(_phrase(self._text(idiom, "idioms")) for idiom in idioms),
        )

    def _sections(self, text: str) -> Mapping[str, Any]:
        try:
            sections = yaml.safe_load(text)
        except yaml.YAMLError as error:
            message = " ".join(str(error).split())
            raise ValueError(f"lexicon {self.where}: not YAML: {message}") from error
        if not isinstance(sections, dict):
            self._fail("must be a mapping with concept, role, words and exchanges")
        for key in sections:
            if key not in _SECTIONS:
                self._fail(f"unknown section {key!r}{nearest(str(key), _SECTIONS)}")
        return sections

    def _word(self, entry: object, where: str) -> Word:
        if not isinstance(entry, dict):
            return Word(lemma=self._text(entry, where))
        self._keys(entry, [f.name for f in fields(Word)], where)
        lemma = self._text(entry.get("lemma"), f"{where}: lemma")
        where = f"{where} ({lemma!r})"
        values: dict[str, Any] = {"lemma": lemma}
        for name in ("also", "is_a", "near"):
            values[name] = self._texts(entry.get(name, []), f"{where}: {name}")
        for name, allowed in (("number", NUMBERS), ("gender", GENDERS)):
            values[name] = entry.get(name, allowed[0])
            if values[name] not in allowed:
                self._fail(f"{where}: {name} {values[name]!r} is not one of {', '.join(allowed)}")
        for name in ("plural", "past", "participle", "ing"):
            if name in entry:
                values[name] = self._text(entry[name], f"{where}: {name}")
        values["ambiguous"] = entry.get("ambiguous", False)
        if not isinstance(values["ambiguous"], bool):
            self._fail(f"{where}: ambiguous must be true or false")
        return Word(**values)

    def _exchange(self, entry: object, words: Mapping[str, Word], where: str) -> list[Exchange]:
        if not isinstance(entry, dict):
            self._fail(f"{where}: must be a mapping with 'among', 'between', or 'from' and 'to'")
        self._keys(entry, ["among", "between", "from", "to", "object", *_CONDITIONS], where)
        conditions: dict[str, Any] = {
            name: frozenset(t.lower() for t in self._texts(entry[name], f"{where}: {name}"))
            for name in _CONDITIONS
            if name in entry
        }
        conditions["object"] = entry.get("object", OBJECTS[0])
        if conditions["object"] not in OBJECTS:
            self._fail(f"{where}: object must be one of {', '.join(OBJECTS)}")
        sides: list[tuple[object, object]]
        match sorted(key for key in ("among", "between", "from", "to") if key in entry):
            case ["among"]:
                sides = [(entry["among"], entry["among"])]
            case ["between"]:
                both = entry["between"]
                if not isinstance(both, list) or len(both) != 2:
                    self._fail(f"{where}: 'between' must be a list of two lists of words")
                sides = [(both[0], both[1]), (both[1], both[0])]
            case ["from", "to"]:
                sides = [(entry["from"], entry["to"])]
            case _:
                self._fail(f"{where}: needs 'among', 'between', or 'from' and 'to'; one of them")
        exchanges = []
        for source, target in sides:
            sources = self._texts(source, where)
            targets = self._texts(target, where)
            self._known([*sources, *targets], words, where)
            exchanges.append(Exchange(sources, targets, **conditions))
        return exchanges

    def _scene(self, name: object, entry: object, words: Mapping[str, Word]) -> Scene:
        where = f"scenes, {name!r}"
        if not isinstance(entry, dict):
            self._fail(f"{where}: must be a mapping with 'signs' and 'holds'")
        self._keys(entry, ["signs", "holds"], where)
        signs = self._texts(entry.get("signs"), f"{where}: signs")
        holds = self._texts(entry.get("holds"), f"{where}: holds")
        self._known([*signs, *holds], words, where)
        return Scene(str(name), signs, frozenset(holds))

    def _one_word_a_form(self, words: Iterable[Word]) -> None:
        owner: dict[tuple[str, ...], str] = {}
        for word in words:
            for text in (word.lemma, *word.also):
                other = owner.setdefault(_phrase(text), word.lemma)
                if other != word.lemma:
                    self._fail(f"words: {text!r} is given for both {other!r} and {word.lemma!r}")

    def _known(self, lemmas: Iterable[str], words: Mapping[str, Word], where: str) -> None:
        for lemma in lemmas:
            if lemma not in words:
                self._fail(f"{where}: {lemma!r} is not under 'words'{nearest(lemma, list(words))}")

    def _keys(self, entry: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
        for key in entry:
            if key not in known:
                self._fail(f"{where}: unknown key {key!r}{nearest(str(key), known)}")

    def _list(self, sections: Mapping[str, Any], name: str) -> list[Any]:
        value = sections.get(name) or []
        if not isinstance(value, list):
            self._fail(f"{name}: must be a list")
        return value

    def _mapping(self, sections: Mapping[str, Any], name: str) -> dict[str, Any]:
        value = sections.get(name) or {}
        if not isinstance(value, dict):
            self._fail(f"{name}: must be a mapping")
        return value

    def _texts(self, value: object, where: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            self._fail(f"{where}: must be a list of words, got {value!r}")
        return tuple(self._text(item, where) for item in value)

    def _text(self, value: object, where: str) -> str:
        # YAML 1.1 reads a bare on, off, yes and no as a truth value.
        hint = " (put on, off, yes and no in quotes)" if isinstance(value, bool) else ""
        if not isinstance(value, str) or not _phrase(value):
            self._fail(f"{where}: must be a word, got {value!r}{hint}")
        return value

    def _fail(self, message: str) -> NoReturn:
        raise ValueError(f"lexicon {self.where}: {message}")


def _forms(words: Iterable[Word], role: str) -> dict[tuple[str, ...], Form]:
    """All forms; one written in the file goes before one that the rules make."""
    forms: dict[tuple[str, ...], Form] = {}
    made: list[Form] = []
    for word in words:
        for text in (word.lemma, *word.also):
            if role == "noun":
                shape = "many" if word.number == "plural" else "one"
            elif role == "verb":
                shape = "base" if text == word.lemma else _shape_of(text)
            else:
                shape = ""
            several = word.number in ("mass", "plural")
            form = Form(word.lemma, text, _phrase(text), shape, several)
            forms.setdefault(form.words, form)
            if role == "noun" and not several:
                many = word.plural_form() if text == word.lemma else english.plural(text)
                made.append(Form(word.lemma, many, _phrase(many), "many", several=True))
        if role == "verb":
            made += [
                Form(word.lemma, text, _phrase(text), shape)
                for shape, text in word.verb_forms().items()
            ]
    for form in made:
        forms.setdefault(form.words, form)
    return forms


def _shape_of(verb: str) -> str:
    """A verb's shape by its ending, for the forms that a lexicon writes out."""
    first = verb.partition(" ")[0]
    endings = (("ing", ("ing",)), ("past", ("ed", "aid")), ("s", ("s",)))  # "aid": laid, paid
    return next((shape for shape, ends in endings if first.endswith(ends)), "base")


def _groups(partners: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Connected components of the exchanges, each under its first word in the alphabet."""
    neighbours: dict[str, set[str]] = {}
    for lemma, others in partners.items():
        for other in others:
            neighbours.setdefault(lemma, set()).add(other)
            neighbours.setdefault(other, set()).add(lemma)
    groups: dict[str, str] = {}
    for first in sorted(neighbours):
        waiting = [] if first in groups else [first]
        while waiting:
            lemma = waiting.pop()
            if lemma not in groups:
                groups[lemma] = first
                waiting.extend(neighbours[lemma])
    return groups


def _by_first_word(
    forms: Mapping[tuple[str, ...], Form], idioms: Iterable[tuple[str, ...]]
) -> dict[str, list[tuple[tuple[str, ...], Form | None]]]:
    """First word to the phrases that begin with it, longest first; None marks an idiom."""
    phrases: dict[tuple[str, ...], Form | None] = {**forms, **dict.fromkeys(idioms)}
    starting: dict[str, list[tuple[tuple[str, ...], Form | None]]] = {}
    for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)):
        starting.setdefault(phrase[0], []).append((phrase, phrases[phrase]))
    return starting


def _phrase(text: str) -> tuple[str, ...]:
    return english.Words(text).lower


def _entries(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass of strings and collections of strings, as JSON with sorted sets."""
    return {
        f.name: sorted(item) if isinstance(item := getattr(value, f.name), frozenset) else item
        for f in fields(value)
    }
