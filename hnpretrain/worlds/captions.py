"""True captions of a scene, in the many ways that people put them.

A caption is one template with its blanks filled. Templates differ in how much they tell: some name
one thing, some all of them with colors, sizes and where they are. They can only state what
`Scene` knows, through `_Speaker`, so each word is true by construction.

What a template draws at random depends on the number of things and on which of them stand side by
side or one above the other, never on kinds, colors, sizes or directions. So the same random stream
gives two scenes that differ in one word's worth of fact the same sentence but for that word;
`pairs` is built on this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import numpy as np

from hnpretrain.worlds.scene import Scene

# Words of one row are synonyms; words of one column are opposites.
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
# "over" and "underneath" less often, as in ordinary English. "Under" a tree may mean beside it.
_VERTICAL_WORDS = {
    "above": ("above", "above", "above", "over"),
    "below": ("below", "below", "below", "underneath"),
}
_SIDE_PHRASES = ("to the {} of", "to the {} of", "on the {} of", "on the {} side of")
_PLACE_PHRASES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
_PLACE_ENDINGS = ("", " of the picture", " of the picture", " of the image", " of the scene")
_VERBS = ("is", "is", "stands", "sits", "can be seen")
_COUNT_NAMES = {2: "two", 3: "three"}

_COLOR_SHARE = 0.85  # of noun phrases that tell the color
_SIZE_SHARE = 0.5
_PART_SHARE = 0.35  # of captions that leave things out
_SENTENCE_SHARE = 0.6  # of captions with a capital letter and a full stop
_TRIES = 40  # draws for one caption that differs from those before it
# Of the scenes, those whose captions all keep to one of two opposite words, for each such pair.
_ONE_VIEW_SHARE = 0.7
_OPPOSITES = ({"left"}, {"right"}), ({"above", "top"}, {"below", "bottom"}), ({"small"}, {"large"})


class _Speaker:
    """Puts the facts of one scene into phrases, with words drawn from one stream.

    Facts in `avoid` (places, relations, sizes) are not told: their phrases are None.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator, avoid: Set[str]) -> None:
        self.scene = scene
        self.rng = rng
        self.avoid = avoid

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def noun(self, i: int) -> str:
        return self.scene.things[i].kind

    def color(self, i: int) -> str:
        return self.scene.things[i].color

    def size(self, i: int) -> str | None:
        size = self.scene.things[i].size
        word = self.pick(SIZE_WORDS[size])
        return None if size in self.avoid else word

    def described(self, i: int) -> str:
        """The noun with its color, its size, both or neither: 'tiny red car'."""
        with_size, with_color = self.chance(_SIZE_SHARE), self.chance(_COLOR_SHARE)
        size = self.size(i)
        words = [size if with_size else None, self.color(i) if with_color else None, self.noun(i)]
        return " ".join(word for word in words if word)

    def a(self, i: int) -> str:
        return with_article(self.described(i))

    def the(self, i: int) -> str:
        return "the " + self.described(i)

    def place(self, i: int) -> str | None:
        """'on the left of the picture'; None also where the scene settles no place."""
        place = self.scene.place(i)
        ending = self.pick(_PLACE_ENDINGS)
        return _PLACE_PHRASES[place] + ending if place and place not in self.avoid else None

    def relation(self, i: int, j: int) -> str | None:
        """'to the left of' for thing i as seen from j; None also on a diagonal."""
        relation = self.scene.relation(i, j)
        side, number = self.pick(_SIDE_PHRASES), int(self.rng.integers(4))
        if relation is None or relation in self.avoid:
            return None
        if relation in ("left", "right"):
            return side.format(relation)
        return _VERTICAL_WORDS[relation][number]


def with_article(phrase: str) -> str:
    """'a' or 'an' before the phrase; the world's words need no more than their first letter."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def captions_of(scene: Scene, rng: np.random.Generator, count: int = 5) -> list[str]:
    """Draws true captions of the scene, all different.

    At least one of them names every thing in the scene, so that whoever makes negatives from the
    captions knows what must not be put in. And mostly they keep to one view, as one person does
    ("left of", never "right of" as well): a careful maker of negatives puts in no word that another
    caption of the image uses, and so the opposite word is left to it.

    Raises:
        ValueError: the count is below 1.
    """
    if count < 1:
        raise ValueError(f"caption count {count}: at least 1 is needed")
    whole = int(rng.integers(count))
    avoid: set[str] = set()
    for sides in _OPPOSITES:
        side, one_view = sides[int(rng.integers(2))], rng.random() < _ONE_VIEW_SHARE
        avoid |= side if one_view and _holds_both(scene, sides) else set()
    captions: list[str] = []
    for i in range(count):
        for _ in range(_TRIES):
            text = caption_of(scene, rng, whole=i == whole, avoid=avoid)
            if text not in captions:
                break
        captions.append(text)
    return captions


def caption_of(
    scene: Scene, rng: np.random.Generator, whole: bool = False, avoid: Set[str] = frozenset()
) -> str:
    """Draws one true caption.

    Args:
        scene: what to tell of.
        rng: the stream of words.
        whole: name every thing in the scene.
        avoid: places, relations and sizes that are not told.
    """
    speaker = _Speaker(scene, rng, avoid)
    told = len(scene.things)
    if not whole and told > 1 and speaker.chance(_PART_SHARE):
        told -= 1 + int(rng.integers(told - 1))
    templates = {1: _ONE, 2: _TWO, 3: _THREE}[told]
    text: str | None = None
    while text is None:
        order = [int(i) for i in rng.permutation(len(scene.things))[:told]]
        text = templates[int(rng.integers(len(templates)))](speaker, *order)
    if speaker.chance(_SENTENCE_SHARE):
        return text[0].upper() + text[1:] + "."
    return text


def _holds_both(scene: Scene, sides: tuple[set[str], set[str]]) -> bool:
    """Whether captions of the scene could use words of both sides."""
    facts: set[str | None] = {thing.size for thing in scene.things}
    indexes = range(len(scene.things))
    facts |= {scene.place(i) for i in indexes}
    facts |= {scene.relation(i, j) for i in indexes for j in indexes if i != j}
    return all(facts & side for side in sides)


def _shown(say: _Speaker, what: str) -> str:
    """The ways to open a caption of anything."""
    return say.pick(
        (
            f"there is {what}",
            f"the picture shows {what}",
            f"the image shows {what}",
            f"this picture has {what} in it",
            f"a picture of {what}",
            f"an image of {what}",
            f"a drawing of {what}",
            f"we see {what}",
            f"you can see {what}",
            f"{what} can be seen",
            f"{what} in a picture",
        )
    )


# A template gives None where the scene has no such fact; another one is drawn then.
_Template = Callable[..., str | None]


def _weighted(weights: dict[_Template, int]) -> tuple[_Template, ...]:
    """Each template as often as its weight, to draw from evenly."""
    return tuple(template for template, weight in weights.items() for _ in range(weight))


def _one_bare(say: _Speaker, i: int) -> str:
    return say.a(i)


def _one_shown(say: _Speaker, i: int) -> str:
    return _shown(say, say.a(i))


def _one_is(say: _Speaker, i: int) -> str:
    where = say.pick(("", " in the picture", " in the image"))
    return f"the {say.noun(i)}{where} is {say.color(i)}"


def _one_is_size(say: _Speaker, i: int) -> str | None:
    where = say.pick(("", " in the picture", " in the image"))
    size = say.size(i)
    text = say.pick(
        (
            f"the {say.noun(i)}{where} is {size}",
            f"the {say.color(i)} {say.noun(i)}{where} is {size}",
            f"the {say.noun(i)}{where} is {size} and {say.color(i)}",
            f"{with_article(say.color(i))} {say.noun(i)} that is {size}",
            f"there is a {size} {say.noun(i)} and it is {say.color(i)}",
        )
    )
    return text if size else None


def _one_that_is(say: _Speaker, i: int) -> str:
    return with_article(f"{say.noun(i)} that is {say.color(i)}")


def _one_placed(say: _Speaker, i: int) -> str | None:
    what, place, the = say.a(i), say.place(i), say.the(i)
    verb = say.pick(_VERBS)
    text = say.pick(
        (
            f"{what} {place}",
            f"there is {what} {place}",
            f"{place} there is {what}",
            f"{what} {verb} {place}",
            f"{the} {verb} {place}",
            f"we see {what} {place}",
        )
    )
    return text if place else None


def _two_bare(say: _Speaker, i: int, j: int) -> str:
    return f"{say.a(i)} and {say.a(j)}"


def _two_shown(say: _Speaker, i: int, j: int) -> str:
    return _shown(say, f"{say.a(i)} and {say.a(j)}")


def _two_listed(say: _Speaker, i: int, j: int) -> str | None:
    return _listed(say, (i, j))


def _two_are(say: _Speaker, i: int, j: int) -> str:
    return f"the {say.noun(i)} is {say.color(i)} and the {say.noun(j)} is {say.color(j)}"


def _two_are_sizes(say: _Speaker, i: int, j: int) -> str | None:
    size_i, size_j = say.size(i), say.size(j)
    text = say.pick(
        (
            f"the {say.noun(i)} is {size_i} and the {say.noun(j)} is {size_j}",
            f"the {say.color(i)} {say.noun(i)} is {size_i}, the {say.color(j)} {say.noun(j)} "
            f"is {size_j}",
        )
    )
    return text if size_i and size_j else None


def _two_placed(say: _Speaker, i: int, j: int) -> str | None:
    what_i, what_j, place_i, place_j = say.a(i), say.a(j), say.place(i), say.place(j)
    text = say.pick(
        (
            f"{what_i} {place_i} and {what_j} {place_j}",
            f"{what_i} {place_i}, {what_j} {place_j}",
            f"{place_i} there is {what_i}, {place_j} there is {what_j}",
        )
    )
    return text if place_i and place_j else None


def _two_related(say: _Speaker, i: int, j: int) -> str | None:
    a_i, a_j, the_i, the_j = say.a(i), say.a(j), say.the(i), say.the(j)
    relation, verb = say.relation(i, j), say.pick(_VERBS)
    text = say.pick(
        (
            f"{a_i} {relation} {a_j}",
            f"{a_i} {verb} {relation} {a_j}",
            f"{a_i} {verb} {relation} {the_j}",
            f"{the_i} {verb} {relation} {the_j}",
            f"there is {a_i} {relation} {a_j}",
            f"the picture shows {a_i} {relation} {a_j}",
            f"a picture of {a_i} {relation} {a_j}",
        )
    )
    return text if relation else None


def _three_bare(say: _Speaker, i: int, j: int, k: int) -> str:
    return f"{say.a(i)}, {say.a(j)} and {say.a(k)}"


def _three_shown(say: _Speaker, i: int, j: int, k: int) -> str:
    return _shown(say, f"{say.a(i)}, {say.a(j)} and {say.a(k)}")


def _three_listed(say: _Speaker, i: int, j: int, k: int) -> str | None:
    return _listed(say, (i, j, k))


def _three_related(say: _Speaker, i: int, j: int, k: int) -> str | None:
    a_i, a_j, a_k = say.a(i), say.a(j), say.a(k)
    relation, verb = say.relation(i, j), say.pick(_VERBS)
    text = say.pick(
        (
            f"{a_i} {verb} {relation} {a_j}, and there is {a_k}",
            f"{a_i} {relation} {a_j}, and {a_k}",
            f"there is {a_k}, and {a_i} {relation} {a_j}",
        )
    )
    return text if relation else None


def _three_chained(say: _Speaker, i: int, j: int, k: int) -> str | None:
    a_i, the_j, a_k = say.a(i), say.the(j), say.a(k)
    relation_i, relation_k, verb = say.relation(i, j), say.relation(k, j), say.pick(_VERBS)
    text = f"{a_i} {verb} {relation_i} {the_j}, and {a_k} {verb} {relation_k} the {say.noun(j)}"
    return text if relation_i and relation_k else None


def _listed(say: _Speaker, things: Sequence[int]) -> str | None:
    """'two things: a red car and a blue tree', when those are all the things there are."""
    *first, last = [say.a(i) for i in things]
    phrases = ", ".join(first) + " and " + last
    opening = say.pick(("", "there are ", "the picture shows ", "a picture of "))
    if len(things) < len(say.scene.things):
        return None
    return f"{opening}{_COUNT_NAMES[len(things)]} things: {phrases}"


# Templates with their weights. Where a thing is gets told as often as what it is: of the concepts,
# location is the one that most scenes and templates can't speak of.
_ONE = _weighted(
    {
        _one_bare: 1,
        _one_shown: 2,
        _one_is: 1,
        _one_is_size: 1,
        _one_that_is: 1,
        _one_placed: 6,
    }
)
_TWO = _weighted(
    {
        _two_bare: 1,
        _two_shown: 2,
        _two_listed: 1,
        _two_are: 1,
        _two_are_sizes: 1,
        _two_placed: 2,
        _two_related: 6,
    }
)
_THREE = _weighted(
    {
        _three_bare: 1,
        _three_shown: 1,
        _three_listed: 1,
        _three_related: 4,
        _three_chained: 2,
    }
)
