"""From labelled incidents to a calibration: diagnose them, then fit the choice and the confidence on what came out.

The incidents must be of programs that the model was not taught on (the part `calibrate` of the foundry), or the fit
believes a memory. Folds keep a program's incidents together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midwatch.copilot import calibration as calibrations
from midwatch.copilot import confidence
from midwatch.copilot.calibration import Example, Outcome
from midwatch.copilot.confidence import Calibration
from midwatch.copilot.model import Case, Diagnosis, Evidence, Finding
from midwatch.copilot.opinion import LEAST, Opinion
from midwatch.copilot.taxonomy import IDS, UNKNOWN
from midwatch.foundry.incident import Incident

if TYPE_CHECKING:
    from midwatch.copilot.workflow import Diagnoser


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A labelled incident and what was found."""

    incident: Incident
    finding: Finding

    @property
    def opinion(self) -> Opinion | None:
        """What the model alone gave each category; None if none was asked."""
        heard = self.finding.diagnosis.heard
        if not heard:
            return None
        signals = self.finding.diagnosis.signals
        return Opinion(
            shares={name: max(heard.get(name, 0.0), LEAST) for name in IDS},
            agreement=signals["answers_agree"],
            spread=signals["answers_spread"],
            entity_margin=signals["entity_margin"],
            mean_logprob=signals["mean_logprob"],
        )


async def find_all(
    diagnoser: Diagnoser,
    incidents: Iterable[Incident],
    *,
    concurrency: int = 2,
    tell: Callable[[int], None] = lambda count: None,
) -> list[Judged]:
    """Diagnose incidents, `concurrency` at a time, in their order."""
    waiting = iter(list(enumerate(incidents)))
    found: dict[int, Judged] = {}

    async def work() -> None:
        for index, incident in waiting:
            found[index] = Judged(incident=incident, finding=await diagnoser.diagnose(incident.case))
            tell(len(found))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return [found[index] for index in sorted(found)]


def fit(
    judged: Sequence[Judged], *, column: str, model: str, fitted_on: str, date: str, words: frozenset[int] = frozenset()
) -> Calibration:
    """Both fits of one way of answering. Raises `SettingsError` for too few incidents.

    The choice is fitted first; the signals are then those that its winners have.
    """
    examples = [
        Example(
            features=confidence.choice_features(item.finding.evidence.ranking, item.opinion),
            right=frozenset({item.incident.truth.category, *item.incident.truth.accepted}),
        )
        for item in judged
    ]
    choice = calibrations.fit_choice(examples)
    outcomes = [outcome for item in judged if (outcome := outcome_of(item, choice, words)) is not None]
    return calibrations.calibrate(
        outcomes, column=column, model=model, choice=choice, fitted_on=fitted_on, date=date, words=words
    )


def outcome_of(item: Judged, choice: Sequence[float], words: frozenset[int]) -> Outcome | None:
    """The winner's signals by a choice's weights; None where it abstains, which promises nothing."""
    ranking = confidence.choose(confidence.choice_features(item.finding.evidence.ranking, item.opinion), choice)
    if ranking[0][0] == UNKNOWN:
        return None
    evidence, diagnosis = item.finding.evidence, item.finding.diagnosis
    known = confidence.known_words(evidence, words)
    cited = _cited(diagnosis, ranking[0][0], evidence)
    signals = confidence.signals_of(ranking, evidence.ranking, item.opinion, cited, known)
    return Outcome(signals=signals, right=item.incident.truth.right(ranking[0][0]), group=item.incident.truth.program)


def _cited(diagnosis: Diagnosis, winner: str, evidence: Evidence) -> tuple[str, ...]:
    if diagnosis.category == winner:
        return tuple(item.id for item in diagnosis.citations)
    return next(
        (item.line_ids[: confidence.CITED_BY_RULES] for item in evidence.ranking if item.category == winner), ()
    )


def words_in(cases: Iterable[Case], lines: Callable[[Case], Sequence[str]], least: int = 2) -> frozenset[int]:
    """Hashes of the words that stand in the shown lines of at least so many cases."""
    counts: dict[str, int] = {}
    for case in cases:
        for word in confidence.words_of(lines(case)):
            counts[word] = counts.get(word, 0) + 1
    return frozenset(confidence.word_hash(word) for word, count in counts.items() if count >= least)


def known_words(budget_tokens: int, *, count: int = 2000) -> frozenset[int]:
    """Hashes of the words that the adapter was taught with: of the lines shown in the training part's incidents."""
    from midwatch.copilot.evidence import build_evidence
    from midwatch.foundry import bank, compose

    def shown(case: Case) -> list[str]:
        return [line.shown for line in build_evidence(case, budget_tokens).lines]

    made = compose.make(0, count, part="train", recordings=compose.recorded(), bank=bank.load())
    return words_in((incident.case for incident in made), shown)
