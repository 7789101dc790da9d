"""Whether negatives can be told from captions by text alone, without a look at the picture.

A logistic regression on word 1-3-grams learns to tell which is which on some images, and judges the
captions and negatives of the others. Chance (0.5) means that a model cannot lower its loss on these
negatives but by looking. (Hsieh et al., "SugarCrepe", NeurIPS 2023, found most benchmarks of hard
negatives to fail such a test.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

FOLDS = 5


@dataclass(frozen=True)
class Pair:
    """A caption and one negative of it; `image` keeps what belongs together in one fold."""

    image: str
    caption: str
    negative: str


def auc(pairs: Sequence[Pair]) -> float:
    """Area under the ROC curve of a text-only classifier, cross-validated over images.

    Each negative is set against its own caption, so that lengths and topics are the same on both
    sides: a caption with three negatives counts three times.

    Raises:
        ValueError: the pairs are of fewer images than there are folds.
    """
    images = [pair.image for pair in pairs]
    if len(set(images)) < FOLDS:
        raise ValueError(f"a text-only test needs pairs of at least {FOLDS} images")
    texts = [pair.caption for pair in pairs] + [pair.negative for pair in pairs]
    labels = np.repeat([0, 1], len(pairs))
    groups = np.array(images * 2)
    ngrams = CountVectorizer(
        ngram_range=(1, 3), token_pattern=r"[^\W_]+|[^\w\s]", binary=True, min_df=2
    ).fit_transform(texts)
    scores = np.zeros(len(labels))
    for train, test in GroupKFold(FOLDS).split(ngrams, labels, groups):
        model = LogisticRegression(solver="liblinear").fit(ngrams[train], labels[train])
        scores[test] = model.decision_function(ngrams[test])
    return float(roc_auc_score(labels, scores))
