"""Does the promise still hold? What people said of diagnoses here, counted against it.

The promise is called broken when even the lower Clopper-Pearson bound of P(accepted and wrong) lies above α.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from midwatch.copilot.calibration import Outcome
from midwatch.copilot.model import Diagnosis, Feedback
from midwatch.copilot.promise import drifted, lower_bound, upper_bound


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Judged diagnoses, how many of them were accepted, and how many of those were wrong."""

    alpha: float
    judged: int
    accepted: int
    accepted_wrong: int

    @property
    def share(self) -> float:
        """P(accepted and wrong) as judged so far."""
        return self.accepted_wrong / self.judged if self.judged else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Its Clopper-Pearson interval, 95 % at each side."""
        return lower_bound(self.accepted_wrong, self.judged), upper_bound(self.accepted_wrong, self.judged)

    @property
    def broken(self) -> bool:
        """Whether even the lower bound lies above α."""
        return drifted(self.accepted_wrong, self.judged, self.alpha)

    @property
    def sentence(self) -> str:
        """The standing in words."""
        if not self.judged:
            return "Nobody has judged a diagnosis yet, so nothing is known about the promise here."
        low, high = self.interval
        said = (
            f"{self.accepted_wrong} of {self.judged} judged diagnoses were accepted and wrong: {self.share:.1%} "
            f"(95 % bounds {low:.1%} to {high:.1%}), promised are at most {self.alpha:.0%}."
        )
        if self.broken:
            return f"{said} The promise no longer holds; refit it with: midwatch calibrate."
        return f"{said} The promise {'holds' if high <= self.alpha else 'is not contradicted'}."


def standing(judged: Iterable[tuple[Diagnosis, Feedback]], alpha: float) -> Standing:
    """Count judged diagnoses."""
    pairs = list(judged)
    accepted = [(diagnosis, said) for diagnosis, said in pairs if diagnosis.action == "accept"]
    wrong = sum(said.verdict == "wrong" for _, said in accepted)
    return Standing(alpha=alpha, judged=len(pairs), accepted=len(accepted), accepted_wrong=wrong)


def outcomes(judged: Iterable[tuple[Diagnosis, Feedback]], column: str) -> list[Outcome]:
    """Judged diagnoses of one way of answering, as a fit takes them."""
    return [
        Outcome(signals=diagnosis.signals, right=said.verdict == "right", group=str(said.incident_id))
        for diagnosis, said in judged
        if diagnosis.signals and column_of(diagnosis) == column
    ]


def column_of(diagnosis: Diagnosis) -> str:
    """The way of answering that a diagnosis came from."""
    if diagnosis.escalated:
        return "escalated"
    return "local" if diagnosis.heard else "rules"
