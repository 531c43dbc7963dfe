"""Have we seen this before? Runbooks and past incidents that look similar, by words and by meaning.

Two rankings of the same sections: BM25 over their words, and, where an embedder is set, the cosine of their vectors.
They are fused by reciprocal rank (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion", 2009):

    score(d) = Σ over rankings r:  1 / (60 + rank of d in r)

A runbook counts by its best section. A past incident counts only where a person vouched for its cause. What may be done
with the result is said in `recalled.py`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from midwatch.copilot.bm25 import BM25, words
from midwatch.copilot.findable import (
    MAX_QUESTION_CHARS,
    Entry,
    Key,
    Question,
    entries_of,
    question_of,
    recalled_from,
    spaced,
)
from midwatch.copilot.memory import PastIncident, Vectors
from midwatch.copilot.model import Case, Evidence, Recalled
from midwatch.copilot.runbooks import Runbook

if TYPE_CHECKING:
    import numpy as np

Ranking = dict[Key, tuple[int, float]]
"""Best first: the place of the best section in the index, and how alike it is (0 to 1)."""

RRF_K = 60
DEPTH = 50
"""Places of a ranking that count."""
ENCODED_AT_ONCE = 32
"""New texts that a search may encode itself; more are left to `warm`."""
LEAST_WORDS, LEAST_COSINE = 0.2, 0.35
"""Below this share of the question's telling words, or this cosine, nothing looks similar."""
STEP_WORDS, STEP_COSINE = 0.3, 0.5
"""From here on a runbook's steps are worth showing."""
LEAST_TERMS = 2
"""One word in common is a coincidence."""
NEARLY = 0.9
"""A runbook's first section that is so near to its best one is shown instead: it says what the runbook is about."""


class Embedder(Protocol):
    """Texts to points. `name` says which model it is, so that its vectors are never mixed with another's."""

    @property
    def name(self) -> str:
        """The model's name."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """A row of length one for each text: float32, [texts, width]."""


class Memory(Protocol):
    """What is kept for the next time; the store is one."""

    def runbooks(self) -> list[Runbook]:
        """Every runbook with its sections."""

    def past_incidents(self) -> list[PastIncident]:
        """The incidents whose cause a person vouched for, the newest first."""

    def memory_revision(self) -> tuple[object, ...]:
        """Differs once either of them has changed."""

    def vectors(self, model: str, digests: Sequence[str]) -> dict[str, bytes]:
        """The kept vectors of a model by the hash of their text."""

    def keep_vectors(self, vectors: Vectors) -> None:
        """Keep vectors."""


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Everything that can be found, at one revision. `vectors` [entries, width] has zero rows where one is missing."""

    revision: tuple[object, ...]
    entries: tuple[Entry, ...]
    words: BM25
    vectors: np.ndarray | None


class Recall:
    """Searches a memory. Built once; it notices changes by itself, also those of another process.

    Without an `embedder` the words alone decide. Blocking: call it on a thread.
    """

    def __init__(self, memory: Memory, embedder: Embedder | None = None) -> None:
        self._memory = memory
        self.embedder = embedder
        self._lock = threading.Lock()
        self._index: _Index | None = None

    def find(self, case: Case, evidence: Evidence, k: int = 3) -> tuple[Recalled, ...]:
        """The `k` runbooks and past incidents that look most similar to a case; fewer, or none, where little does."""
        return self.search(question_of(case, evidence), k)

    def search(self, question: Question, k: int = 3) -> tuple[Recalled, ...]:
        """The same for a question in words."""
        index = self._current()
        rankings = self._rankings(index, question)
        fused: dict[Key, float] = {}
        for ranking in rankings:
            for rank, key in enumerate(ranking, start=1):
                fused[key] = fused.get(key, 0.0) + (RRF_K + 1) / (RRF_K + rank) / len(rankings)
        found: list[Recalled] = []
        for key in sorted(fused, key=lambda key: (-fused[key], key)):
            number = max(number for number, ranking in enumerate(rankings) if key in ranking)
            place, likeness = rankings[number][key]
            is_near = likeness >= (STEP_WORDS, STEP_COSINE)[number]
            found.append(recalled_from(index.entries[place], fused[key], likeness, with_steps=is_near))
        return tuple(_distinct(found)[:k])

    def rankings(self, question: Question) -> list[list[Key]]:
        """What each ranking says alone, best first: by words, and by meaning where an embedder is set."""
        return [list(ranking) for ranking in self._rankings(self._current(), question)]

    def _rankings(self, index: _Index, question: Question) -> list[Ranking]:
        if not index.entries:
            return []
        found = [_by_words(index, question)]
        if index.vectors is not None:
            found.append(self._by_meaning(index, question))
        return found

    def warm(self, stop: Callable[[], bool] = lambda: False) -> int:
        """Build the index and encode what has no vector yet, however long it takes. Returns how many texts were.

        `stop` is asked now and then whether to leave the rest for another time.
        """
        if self.embedder is None:
            self._current()
            return 0
        texts = {
            _digest(entry.sentence): entry.sentence
            for entry in entries_of(self._memory.runbooks(), self._memory.past_incidents())
        }
        missing = self._missing(list(texts))
        done = 0
        while done < len(missing) and not stop():
            some = missing[done : done + ENCODED_AT_ONCE]
            self._encode({digest: texts[digest] for digest in some})
            done += len(some)
        with self._lock:
            self._index = None
        return done

    def _current(self) -> _Index:
        revision = self._memory.memory_revision()
        with self._lock:
            if self._index is None or self._index.revision != revision:
                entries = tuple(self._entries())
                self._index = _Index(
                    revision=revision,
                    entries=entries,
                    words=BM25([words(entry.text) for entry in entries]),
                    vectors=self._vectors(entries) if self.embedder is not None and entries else None,
                )
            return self._index

    def _entries(self) -> list[Entry]:
        return entries_of(self._memory.runbooks(), self._memory.past_incidents())

    def _vectors(self, entries: Sequence[Entry]) -> np.ndarray:
        import numpy as np

        assert self.embedder is not None
        digests = [_digest(entry.sentence) for entry in entries]
        missing = self._missing(digests)[:ENCODED_AT_ONCE]
        if missing:
            texts = {digest: entry.sentence for digest, entry in zip(digests, entries, strict=True)}
            self._encode({digest: texts[digest] for digest in missing})
        kept = self._memory.vectors(self.embedder.name, digests)
        width = len(next(iter(kept.values()))) // 4
        rows = np.zeros((len(entries), width), dtype=np.float32)
        for place, digest in enumerate(digests):
            if digest in kept:
                rows[place] = np.frombuffer(kept[digest], dtype="<f4")
        return rows

    def _missing(self, digests: list[str]) -> list[str]:
        assert self.embedder is not None
        kept = self._memory.vectors(self.embedder.name, digests)
        return [digest for digest in dict.fromkeys(digests) if digest not in kept]

    def _encode(self, texts: dict[str, str]) -> None:
        assert self.embedder is not None
        rows = self.embedder(list(texts.values())).astype("<f4")
        found = {digest: row.tobytes() for digest, row in zip(texts, rows, strict=True)}
        self._memory.keep_vectors(Vectors(model=self.embedder.name, by_digest=found))

    def _by_meaning(self, index: _Index, question: Question) -> Ranking:
        """By the cosine of the best section to the alert or to the lines, whichever is nearer."""
        import numpy as np

        assert self.embedder is not None
        assert index.vectors is not None
        texts = [text[:MAX_QUESTION_CHARS] for text in (spaced(question.alert), question.lines) if text]
        if not texts:
            return {}
        cosines = (index.vectors @ self.embedder(texts).T).max(axis=1)
        nearest = np.argsort(-cosines, kind="stable")
        order = [int(place) for place in nearest if cosines[place] >= LEAST_COSINE]
        return _first_of_each(index, ((place, float(cosines[place]), float(cosines[place])) for place in order))


def _by_words(index: _Index, question: Question) -> Ranking:
    """By the BM25 score of the best section, with the share it has of the alert's telling words, or of the lines'."""
    parts = [list(dict.fromkeys(words(text))) for text in (question.alert, question.lines)]
    alert, lines = (index.words.matches(terms) for terms in parts)
    together = index.words.matches([*parts[0], *parts[1]])
    least_terms = min(LEAST_TERMS, max(map(len, parts)))
    likeness = {
        place: share
        for place, match in together.items()
        if match.terms >= least_terms
        and (share := max(found[place].share for found in (alert, lines) if place in found)) >= LEAST_WORDS
    }
    ranked = sorted(likeness, key=lambda place: (-together[place].score, place))
    return _first_of_each(index, ((place, together[place].score, likeness[place]) for place in ranked))


def _first_of_each(index: _Index, ranked: Iterable[tuple[int, float, float]]) -> Ranking:
    """Runbooks and incidents from sections (place, score, likeness), best first, `DEPTH` of them."""
    found: Ranking = {}
    best: dict[Key, float] = {}
    for place, score, likeness in ranked:
        key = index.entries[place].key
        if key not in best:
            if len(best) == DEPTH:
                continue
            best[key], found[key] = score, (place, likeness)
        elif score >= NEARLY * best[key] and place < found[key][0]:
            found[key] = (place, found[key][1])
    return found


def _distinct(found: Sequence[Recalled]) -> list[Recalled]:
    """Without incidents that say what a better one said: the same alert with the same cause."""
    seen: set[tuple[str, str]] = set()
    kept: list[Recalled] = []
    for item in found:
        said = (item.title, item.category) if item.kind == "incident" else ("", item.ref)
        if said not in seen:
            seen.add(said)
            kept.append(item)
    return kept


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
