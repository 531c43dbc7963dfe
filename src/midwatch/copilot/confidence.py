"""How sure are we? What the rules and a model say becomes one ranking, and the ranking one calibrated P(right).

Two steps, both fitted on labelled incidents that the model never saw (`calibration.py` fits, this file applies):

    ranking     P(c) ∝ exp(w · x(c)), x(c) = what the model gives c (log), the rules' share of c, whether the rules put
                c first, whether c abstains: a conditional logit (McFadden 1974)
    confidence  σ(v · f), f = `SIGNALS` of the winner: a logistic fit (Platt 1999)

An answer is accepted at or above a threshold that keeps P(accepted and wrong) ≤ α by a Clopper-Pearson bound on the
same labelled incidents, and never below one half. Without a fit for the model at hand the number is a plain product
of the two voices and says that it is not calibrated. What a model says of itself is never asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, log
from zlib import crc32

from midwatch.copilot.model import Action, Evidence, Ranked
from midwatch.copilot.opinion import Opinion
from midwatch.copilot.promise import fit_threshold
from midwatch.copilot.taxonomy import IDS, UNKNOWN

LEAST_ACCEPTED = 0.5
"""An answer that is as likely wrong as right is never accepted, whatever α would allow."""
MAX_CONFIDENCE = 0.99
CITED_BY_RULES = 3
"""Lines that the rules cite at most."""
CHOICE = ("model", "rules", "rules_first", "abstains")
"""x(c), in the order of the fitted weights."""
SIGNALS = (
    "bias",
    "choice_logit",
    "choice_margin",
    "model_share",
    "model_margin",
    "rules_share",
    "rules_lead",
    "rules_silent",
    "voices_agree",
    "answers_agree",
    "answers_spread",
    "coverage",
    "entity_margin",
    "mean_logprob",
    "known_words",
)
"""f, in the order of the fitted weights."""
_WORD = re.compile(r"[a-z]{3,24}")
_PLAIN_CHOICE = (1.0, 6.0, 1.5, -1.0)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fit for one way of answering (`local` with the triage adapter, `rules` alone, ...).

    `scores` are (confidence, 1 if right else 0) of the labelled incidents that the threshold is chosen on; `fitted_on`
    says which, `date` when. `words` are hashes of the words that those and the taught incidents are made of.
    """

    column: str
    model: str
    choice: tuple[float, ...]
    signals: tuple[float, ...]
    scores: tuple[tuple[float, int], ...]
    fitted_on: str
    date: str
    words: frozenset[int] = field(default=frozenset())

    def threshold(self, alpha: float, delta: float = 0.05) -> float:
        """The least confidence at which an answer is accepted so that P(accepted and wrong) ≤ alpha, 1 - delta sure."""
        confidences, right = [score for score, _ in self.scores], [bool(good) for _, good in self.scores]
        return max(LEAST_ACCEPTED, fit_threshold(confidences, right, alpha, delta))


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The ranking of all categories by P(right), and the winner's confidence with what it was computed from."""

    ranking: tuple[tuple[str, float], ...]
    confidence: float
    calibrated: bool
    signals: dict[str, float]

    @property
    def category(self) -> str:
        """The answer."""
        return self.ranking[0][0]


def judge(
    evidence: Evidence,
    opinion: Opinion | None,
    cited: Collection[str],
    calibration: Calibration | None,
    *,
    said: str = "",
    rules: bool = True,
) -> Judgement:
    """Weigh the rules' ranking (unless `rules` is False) and a model's opinion (None: nobody was asked).

    `cited` are the lines of the answer that said the category `said`; where another wins, its rules' lines are cited.
    """
    ranked = evidence.ranking if rules else ()
    weights = calibration.choice if calibration is not None else _PLAIN_CHOICE
    ranking = choose(choice_features(ranked, opinion), weights)
    if ranking[0][0] != said:
        cited = next((item.line_ids[:CITED_BY_RULES] for item in ranked if item.category == ranking[0][0]), ())
    known = known_words(evidence, calibration.words if calibration is not None else frozenset())
    signals = signals_of(ranking, ranked, opinion, cited, known)
    if calibration is not None:
        confidence = sigmoid(sum(w * signals[name] for w, name in zip(calibration.signals, SIGNALS, strict=True)))
    else:
        confidence = ranking[0][1]
    if ranking[0][0] == UNKNOWN:  # an abstention promises nothing
        confidence = min(confidence, LEAST_ACCEPTED / 2)
    return Judgement(
        ranking=ranking,
        confidence=round(min(max(confidence, 0.0), MAX_CONFIDENCE), 4),
        calibrated=calibration is not None,
        signals=signals,
    )


def choice_features(ranked: Sequence[Ranked], opinion: Opinion | None) -> dict[str, tuple[float, ...]]:
    """x(c) of every category."""
    rules = {item.category: item.score for item in ranked}
    first = ranked[0].category if ranked else UNKNOWN
    even = 1.0 / len(IDS)
    return {
        name: (
            log((opinion.shares[name] if opinion is not None else even) / even),
            rules.get(name, 0.0),
            float(name == first),
            float(name == UNKNOWN),
        )
        for name in IDS
    }


def choose(features: dict[str, tuple[float, ...]], weights: Sequence[float]) -> tuple[tuple[str, float], ...]:
    """Categories by their share of exp(w · x), best first; ties by name."""
    scores = {name: sum(w * x for w, x in zip(weights, values, strict=True)) for name, values in features.items()}
    top = max(scores.values())
    raw = {name: exp(score - top) for name, score in scores.items()}
    total = sum(raw.values())
    return tuple(sorted(((name, value / total) for name, value in raw.items()), key=lambda item: (-item[1], item[0])))


def signals_of(
    ranking: Sequence[tuple[str, float]],
    ranked: Sequence[Ranked],
    opinion: Opinion | None,
    cited: Collection[str],
    known: float,
) -> dict[str, float]:
    """f of the winner, by name."""
    (winner, share), (_, second) = ranking[0], ranking[1]
    mine = next((item for item in ranked if item.category == winner), None)
    others = max((item.score for item in ranked if item is not mine), default=0.0)
    needed = min(2, len(mine.line_ids)) if mine is not None else 0
    return {
        "bias": 1.0,
        "choice_logit": max(min(log(max(share, 1e-9) / max(1 - share, 1e-9)), 8.0), -4.0),
        "choice_margin": share - second,
        "model_share": opinion.shares[winner] if opinion is not None else 0.0,
        "model_margin": opinion.margin if opinion is not None else 0.0,
        "rules_share": mine.score if mine is not None else 0.0,
        "rules_lead": (mine.score if mine is not None else 0.0) - others,
        "rules_silent": float(not ranked),
        "voices_agree": float(opinion is not None and bool(ranked) and opinion.best == ranked[0].category),
        "answers_agree": opinion.agreement if opinion is not None else 0.0,
        "answers_spread": opinion.spread if opinion is not None else 0.0,
        "coverage": len(set(cited) & set(mine.line_ids)) / needed if mine is not None and needed else 0.0,
        "entity_margin": opinion.entity_margin if opinion is not None else 0.0,
        "mean_logprob": max(opinion.mean_logprob, -2.0) if opinion is not None else 0.0,
        "known_words": known,
    }


def known_words(evidence: Evidence, known: frozenset[int]) -> float:
    """Share of the shown lines' words whose hashes are `known` (taught or fitted on); 1 where none are given.

    It tells how far from home an incident is.
    """
    if not known:
        return 1.0
    words = words_of(line.shown for line in evidence.lines)
    return sum(word_hash(word) in known for word in words) / len(words) if words else 0.0


def words_of(texts: Iterable[str]) -> set[str]:
    """Words of some lines: runs of three letters or more, lower case."""
    return {word for text in texts for word in _WORD.findall(text.lower())}


def word_hash(word: str) -> int:
    """A word as 24 bits, the same on every machine."""
    return crc32(word.encode()) & 0xFFFFFF


def action_of(confidence: float, threshold: float, *, can_escalate: bool) -> Action:
    """Accept at or above the threshold; below it ask the bigger model if there is one, else a person."""
    if confidence >= threshold:
        return "accept"
    return "escalate" if can_escalate else "ask_person"


def sigmoid(value: float) -> float:
    """1 / (1 + e^-x), for any x."""
    return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))
