"""The strategies, each a small class that cites its source. `strategies_of` makes a mix of them."""

from __future__ import annotations

from collections.abc import Sequence

from shard_tools.negatives.frequencies import Frequencies, FrequencyTable
from shard_tools.negatives.lexicon import Lexicon, load_lexicon
from shard_tools.negatives.settings import NegativeSettings
from shard_tools.negatives.strategies.base import Proposal, Strategy, Task
from shard_tools.negatives.strategies.fill import Fill
from shard_tools.negatives.strategies.guards import Guards
from shard_tools.negatives.strategies.masked_model import MaskedModel
from shard_tools.negatives.strategies.negate import Negate
from shard_tools.negatives.strategies.replace import ConceptReplacement
from shard_tools.negatives.strategies.shuffle import Shuffle
from shard_tools.negatives.strategies.swap import Swap
from shard_tools.negatives.strategies.wordnet import WordNetReplacement
from shard_tools.negatives.wndb import WordNet, find_wordnet

__all__ = ["Proposal", "Strategy", "Task", "strategies_of"]


def strategies_of(
    settings: NegativeSettings, lexicons: Sequence[Lexicon], table: FrequencyTable | None
) -> list[Strategy]:
    """The strategies of the settings' mix, in a fixed order.

    Args:
        settings: say which.
        lexicons: of the concepts that are replaced.
        table: their words' frequencies; None draws them evenly.

    Raises:
        ValueError: the table was counted with other lexicons, or a strategy lacks its model.
    """
    where = f"negatives.frequencies={settings.frequencies!r}" if settings.frequencies else "words"
    strategies: list[Strategy] = []
    for lexicon in lexicons:
        even = Frequencies(lexicon)
        frequencies = even if table is None else table.frequencies(lexicon, where)
        strategies.append(ConceptReplacement(lexicon, frequencies, settings.draws))
    if kinds := settings.kinds_of("swap"):
        objects, *qualities = _consulted(settings, "swap")
        strategies.append(Swap(kinds, objects, qualities, settings.swap.plausible))
    if kinds := settings.kinds_of("wordnet"):
        wordnet = find_wordnet(settings.wordnet)
        guards = Guards(_consulted(settings, "wordnet"), wordnet)
        strategies.append(WordNetReplacement(kinds, wordnet, guards))
    if kinds := settings.kinds_of("fill"):
        known = _wordnet_if_any(settings)
        guards = Guards(_consulted(settings, "fill"), known)
        strategies.append(Fill(kinds, MaskedModel(settings.fill), guards, known))
    if kinds := settings.kinds_of("negate"):
        strategies.append(Negate(kinds, *_consulted(settings, "negate")))
    if kinds := settings.kinds_of("shuffle"):
        strategies.append(Shuffle(kinds))
    return strategies


def _consulted(settings: NegativeSettings, strategy: str) -> list[Lexicon]:
    return [load_lexicon(c, settings.lexicons.get(c)) for c in settings.consulted(strategy)]


def _wordnet_if_any(settings: NegativeSettings) -> WordNet | None:
    """WordNet, if one was named or is installed."""
    try:
        return find_wordnet(settings.wordnet)
    except ValueError:
        if settings.wordnet:
            raise
        return None
