"""Have we seen this before? Runbooks and past incidents that look similar, by words and by meaning.

Two rankings of the same sections: BM25 over their words, and, where an embedder is set, the cosine of their vectors.
They are fused by reciprocal rank (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion", 2009):

    score(d) = Σ over rankings r:  1 / (60 + rank of d in r)

A runbook counts by its best section. A past incident counts only where a person vouched for its cause. What may be done
with the result is said in `recalled.py`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from midwatch.copilot import runbooks as books
from midwatch.copilot.bm25 import BM25, words
from midwatch.copilot.memory import PastIncident, Vectors
from midwatch.copilot.model import Case, Evidence, Recalled
from midwatch.copilot.parsing import clean, clip
from midwatch.copilot.runbooks import Runbook, Section

if TYPE_CHECKING:
    import numpy as np

Key = tuple[str, str]
"""Kind and name of what can be found."""

RRF_K = 60
DEPTH = 50
"""Places of a ranking that count."""
MAX_LINES = 3
MAX_LINE_CHARS = 200
MAX_QUESTION_CHARS = 1_200
MAX_EXCERPT_CHARS = 300
MAX_STEPS = 5
ENCODED_AT_ONCE = 32
"""New texts that a search may encode itself; more are left to `warm`."""
LEAST_WORDS = 0.15
"""Least share of the question's telling words, below which nothing looks similar."""
LEAST_TERMS = 2
"""One word in common is a coincidence."""
LEAST_COSINE = 0.35

_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_/]")
_TELLS = re.compile(
    r"mitigat|resol|remediat|fix|recover|repair|action|what to do|how to|steps|solution|procedure|diagnos|investigat"
    r"|troubleshoot|debug",
    re.IGNORECASE,
)


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
class _Entry:
    """A piece of text that can be found: a section of a runbook, or a past incident."""

    key: Key
    title: str
    body: str
    section: str = ""
    runbook: Runbook | None = None
    incident: PastIncident | None = None

    @property
    def text(self) -> str:
        """What is indexed."""
        name = self.runbook.name if self.runbook is not None else ""
        return f"{self.title}\n{name}\n{self.section}\n{self.body}"

    @property
    def sentence(self) -> str:
        """What is encoded: names in humps as words."""
        return " ".join(f"{spaced(self.title)}. {self.section}. {books.plain(self.body)}".split())[:MAX_QUESTION_CHARS]


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Everything that can be found, at one revision. `vectors` [entries, width] has zero rows where one is missing."""

    revision: tuple[object, ...]
    entries: tuple[_Entry, ...]
    words: BM25
    vectors: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is looked for. `alert` is the alert in words, `lines` are what the log says of it."""

    alert: str
    lines: str = ""


class Recall:
    """Searches a memory. Built once; it notices changes by itself, also those of another process.

    Without an embedder the words alone decide. Blocking: call it on a thread.
    """

    def __init__(self, memory: Memory, embedder: Embedder | None = None) -> None:
        self._memory = memory
        self._embedder = embedder
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
            place, likeness = next(ranking[key] for ranking in reversed(rankings) if key in ranking)
            found.append(_recalled(index.entries[place], fused[key], likeness))
        return tuple(_distinct(found)[:k])

    def rankings(self, question: Question) -> list[list[Key]]:
        """What each ranking says alone, best first: by words, and by meaning where an embedder is set."""
        return [list(ranking) for ranking in self._rankings(self._current(), question)]

    def _rankings(self, index: _Index, question: Question) -> list[dict[Key, tuple[int, float]]]:
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
        if self._embedder is None:
            self._current()
            return 0
        texts = {_digest(entry.sentence): entry.sentence for entry in _entries(self._memory)}
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
                entries = tuple(_entries(self._memory))
                self._index = _Index(
                    revision=revision,
                    entries=entries,
                    words=BM25([words(entry.text) for entry in entries]),
                    vectors=self._vectors(entries) if self._embedder is not None and entries else None,
                )
            return self._index

    def _vectors(self, entries: Sequence[_Entry]) -> np.ndarray:
        import numpy as np

        assert self._embedder is not None
        digests = [_digest(entry.sentence) for entry in entries]
        missing = self._missing(digests)[:ENCODED_AT_ONCE]
        if missing:
            texts = {digest: entry.sentence for digest, entry in zip(digests, entries, strict=True)}
            self._encode({digest: texts[digest] for digest in missing})
        kept = self._memory.vectors(self._embedder.name, digests)
        width = len(next(iter(kept.values()))) // 4
        rows = np.zeros((len(entries), width), dtype=np.float32)
        for place, digest in enumerate(digests):
            if digest in kept:
                rows[place] = np.frombuffer(kept[digest], dtype="<f4")
        return rows

    def _missing(self, digests: list[str]) -> list[str]:
        assert self._embedder is not None
        kept = self._memory.vectors(self._embedder.name, digests)
        return [digest for digest in dict.fromkeys(digests) if digest not in kept]

    def _encode(self, texts: dict[str, str]) -> None:
        assert self._embedder is not None
        rows = self._embedder(list(texts.values())).astype("<f4")
        found = {digest: row.tobytes() for digest, row in zip(texts, rows, strict=True)}
        self._memory.keep_vectors(Vectors(model=self._embedder.name, by_digest=found))

    def _by_meaning(self, index: _Index, question: Question) -> dict[Key, tuple[int, float]]:
        import numpy as np

        assert self._embedder is not None
        assert index.vectors is not None
        text = f"{spaced(question.alert)}. {question.lines}"[:MAX_QUESTION_CHARS]
        cosines = index.vectors @ self._embedder([text])[0]
        order = np.argsort(-cosines, kind="stable")
        return _first_of_each(
            index, ((int(place), float(cosines[place])) for place in order if cosines[place] >= LEAST_COSINE)
        )


def question_of(case: Case, evidence: Evidence) -> Question:
    """The question of a case: its alert, and the lines that the rules' first category stands on (else the first)."""
    wanted = evidence.ranking[0].line_ids if evidence.ranking else ()
    lines = [line for line in evidence.lines if line.id in wanted] or list(evidence.lines)
    alert = " ".join(dict.fromkeys(part for part in (case.title, case.message, case.service) if part))
    return Question(
        alert=clip(clean(alert), MAX_QUESTION_CHARS),
        lines="\n".join(line.shown[:MAX_LINE_CHARS] for line in lines[:MAX_LINES]),
    )


def spaced(text: str) -> str:
    """Text with names in humps, paths and snake case as words: `KubePodNotReady` becomes `Kube Pod Not Ready`."""
    return _HUMPS.sub(" ", text)


def _entries(memory: Memory) -> list[_Entry]:
    found = [
        _Entry(
            key=("runbook", runbook.name),
            title=runbook.title,
            section=section.heading,
            body=section.text,
            runbook=runbook,
        )
        for runbook in memory.runbooks()
        for section in runbook.sections
    ]
    for incident in memory.past_incidents():
        diagnosis = incident.finding.diagnosis
        lines = [item.text[:MAX_LINE_CHARS] for item in diagnosis.citations[:MAX_LINES]]
        body = "\n".join([incident.service, diagnosis.summary, *lines, incident.note])
        found.append(
            _Entry(key=("incident", str(incident.id)), title=incident.title, body=clean(body), incident=incident)
        )
    return found


def _by_words(index: _Index, question: Question) -> dict[Key, tuple[int, float]]:
    """Runbooks and incidents by the BM25 score of their best section, with the share of telling words that it has."""
    terms = list(dict.fromkeys(words(f"{question.alert} {question.lines}")))
    found = index.words.matches(terms)
    enough = {
        place: match
        for place, match in found.items()
        if match.share >= LEAST_WORDS and match.terms >= min(LEAST_TERMS, len(terms))
    }
    ranked = sorted(enough, key=lambda place: (-enough[place].score, place))
    return _first_of_each(index, ((place, enough[place].share) for place in ranked))


def _first_of_each(index: _Index, ranked: Iterable[tuple[int, float]]) -> dict[Key, tuple[int, float]]:
    """The best place and its likeness of each runbook and incident, in order, `DEPTH` of them."""
    found: dict[Key, tuple[int, float]] = {}
    for place, likeness in ranked:
        found.setdefault(index.entries[place].key, (place, likeness))
        if len(found) == DEPTH:
            break
    return found


def _recalled(entry: _Entry, score: float, likeness: float) -> Recalled:
    kind, ref = entry.key
    excerpt = entry.body
    steps: tuple[str, ...] = ()
    if entry.runbook is not None:
        excerpt, steps = books.plain(entry.body), _steps(entry.runbook, entry.section)
    elif entry.incident is not None:
        excerpt = " ".join(part for part in (entry.incident.finding.diagnosis.summary, entry.incident.note) if part)
    return Recalled(
        kind="runbook" if kind == "runbook" else "incident",
        ref=ref,
        title=entry.title,
        score=round(score, 4),
        similarity=round(min(max(likeness, 0.0), 1.0), 4),
        excerpt=clip(clean(excerpt), MAX_EXCERPT_CHARS),
        section=entry.section,
        url=entry.runbook.url if entry.runbook is not None else "",
        steps=steps,
        category=entry.incident.category if entry.incident is not None else "",
    )


def _steps(runbook: Runbook, matched: str) -> tuple[str, ...]:
    """What a runbook tells to do: of the sections that are about doing, the matched one first, else of the matched."""
    doing = [section for section in runbook.sections if _TELLS.search(section.heading)]
    doing.sort(key=lambda section: section.heading != matched)
    wanted: list[Section] = doing or [section for section in runbook.sections if section.heading == matched]
    return tuple(
        f"{section.heading or runbook.title}: {clean(step)}" for section in wanted for step in books.steps(section.text)
    )[:MAX_STEPS]


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
