"""When a word must not stand in another's place, as far as the captions' text tells."""

from __future__ import annotations

from shard_tools.negatives.captions import CaptionText, SampleText
from shard_tools.negatives.lexicon import Lexicon, Mention

# In the scope of these a false word can make a true caption: "a bathroom with no toilet".
_NEGATIONS = frozenset(
    """
    no not without never neither nor none nothing nobody missing lacking except unlike absent
    empty prohibiting prohibited prohibits forbidding forbidden banning banned
    hardly barely scarcely nowhere
    cannot cant isnt arent wasnt werent dont doesnt didnt wont hasnt havent
    or either maybe perhaps possibly might seems seem
    """.split()  # noqa: SIM905  (a list of 50 quoted words reads worse)
)
_NOT_ENDINGS = ("n't", "n\u2019t")
_PRONOUNS = frozenset({"he", "him", "his", "himself", "she", "her", "hers", "herself"})


def denies(caption: CaptionText) -> bool:
    """Whether the caption denies something or offers an alternative."""
    if not _NEGATIONS.isdisjoint(caption.words.lower):
        return True
    lower = caption.text.lower()
    return any(ending in lower for ending in _NOT_ENDINGS)


def refusal(
    lexicon: Lexicon, sample: SampleText, caption: CaptionText, mention: Mention, target: str
) -> str:
    """Why the word `target` may not stand where a word is mentioned, or ''.

    `pronoun`: a pronoun says the sex. `annotated`: an annotated object may be one.
    `mentioned_elsewhere`: a caption names it, or what may be it; of a relation, what holds between
    the same things. `scene`: the scene may show one unmentioned.
    """
    source = mention.form.lemma
    if lexicon.words[source].gender and not _PRONOUNS.isdisjoint(caption.words.lower):
        return "pronoun"
    mentioned = sample.mentioned(lexicon)
    family = lexicon.family(target)
    if lexicon.role == "relation":
        governed = caption.governed_stems(mention.end)
        said = mentioned.governed
        if any(lemma in said and not said[lemma].isdisjoint(governed) for lemma in family):
            return "mentioned_elsewhere"
        if any(other.form.lemma in family for other in caption.mentions(lexicon)):
            return "mentioned_elsewhere"
        return ""
    if mentioned.annotated and _is_annotated(lexicon, mentioned.annotated, family, target):
        return "annotated"
    if not family.isdisjoint(mentioned.lemmas):
        return "mentioned_elsewhere"
    # "an animal" for the dog is taken for the dog itself; "animals" may include a cat. A broader
    # word that does not cover the dog ("a feline") is the cat, also in the singular.
    shared = lexicon.broader(source)
    for broader in lexicon.broader(target):
        if broader in (mentioned.several if broader in shared else mentioned.lemmas):
            return "mentioned_elsewhere"
    return "scene" if target in mentioned.held else ""


def _is_annotated(
    lexicon: Lexicon, annotated: frozenset[str], family: frozenset[str], target: str
) -> bool:
    if not family.isdisjoint(annotated):
        return True
    # An annotation is of a broad class: what it is called must not cover the target. People are the
    # exception: that a person is annotated says nothing about which.
    return not lexicon.words[target].gender and not lexicon.broader(target).isdisjoint(annotated)
