"""Which texts share the rare words of a question? Okapi BM25 over an index in memory.

    score(q, d) = Σ over terms t of q:  idf(t) · tf·(k1 + 1) / (tf + k1·(1 − b + b·|d| / mean |d|))
    idf(t)      = ln(1 + (N − n(t) + 0.5) / (n(t) + 0.5))

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, equations 3.9 and 3.15, with the
`1 +` of Lucene that keeps a word of most texts from counting against one.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

K1 = 1.2
B = 0.75
MAX_WORD_CHARS = 60
# fmt: off
STOP_WORDS = frozenset((
    "a", "about", "all", "also", "an", "and", "any", "are", "as", "at", "be", "been", "before", "but", "by", "can",
    "could", "did", "do", "does", "for", "from", "had", "has", "have", "how", "if", "in", "into", "is", "it", "its",
    "may", "more", "most", "no", "not", "of", "on", "one", "or", "other", "our", "out", "over", "should", "so",
    "some", "such", "than", "that", "the", "their", "then", "there", "these", "they", "this", "to", "up", "us",
    "was", "we", "were", "what", "when", "where", "which", "while", "who", "will", "with", "would", "you", "your",
))
# fmt: on
"""English words that say nothing about what a text is about."""

_RUN = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_A-Za-z]+")


def words(text: str) -> list[str]:
    """The terms of a text: lower case, stop words left out, plurals as singulars.

    A name written in humps gives its parts and itself (`KubePodNotReady`: kube, pod, ready, kubepodnotready), so that
    it meets both the same name and a sentence about the same thing.
    """
    found: list[str] = []
    for run in _RUN.findall(text):
        parts = _HUMP.findall(run)
        pieces = parts if len(parts) <= 1 else [*parts, run]
        found += [
            singular(word)
            for piece in pieces
            if (word := piece.lower()) not in STOP_WORDS and 1 < len(word) <= MAX_WORD_CHARS
        ]
    return found


def singular(word: str) -> str:
    """A word without its plural ending (Harman, "How Effective Is Suffixing?", 1991: the S stemmer)."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("us", "ss")):
        return word
    if word.endswith("ies"):
        return word if word.endswith(("eies", "aies")) else word[:-3] + "y"
    return word if word.endswith(("aes", "ees", "oes")) else word[:-1]


class Match(NamedTuple):
    """What a text has of a query: its score, its share of the query's idf (0 to 1), and how many of its terms."""

    score: float
    share: float
    terms: int


class BM25:
    """An index of texts, each given as its terms. It does not change; build another where the texts do."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._count = len(texts)
        mean_length = (sum(map(len, texts)) / len(texts) if texts else 0.0) or 1.0
        self._weights: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, terms in enumerate(texts):
            norm = K1 * (1 - B + B * len(terms) / mean_length)
            for term, count in Counter(terms).items():
                self._weights[term].append((place, count * (K1 + 1) / (count + norm)))

    def idf(self, term: str) -> float:
        """How much a term tells: about ln N for one that a single text has, more for one that none has."""
        having = len(self._weights.get(term, ()))
        return math.log(1 + (self._count - having + 0.5) / (having + 0.5))

    def matches(self, query: Iterable[str]) -> dict[int, Match]:
        """Every text that has a term of the query, by place. A repeated term of the query counts once."""
        scores: dict[int, float] = defaultdict(float)
        had: dict[int, float] = defaultdict(float)
        terms: dict[int, int] = defaultdict(int)
        total = 0.0
        for term in dict.fromkeys(query):
            idf = self.idf(term)
            total += idf
            for place, weight in self._weights.get(term, ()):
                scores[place] += idf * weight
                had[place] += idf
                terms[place] += 1
        return {place: Match(score, had[place] / total, terms[place]) for place, score in scores.items()}
