"""One answer beside the truth: what the measures are computed from."""

from __future__ import annotations

from dataclasses import dataclass

from midwatch.foundry.incident import Truth


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one column (`rules`, `local`, `escalated`) said about one incident.

    `ranking` are categories, best first (the answer is the first; `unknown` abstains). `confidence` is P(right) as
    shown, `accepted` whether it was shown without asking further. `cited` and `shown` are 1-based line numbers;
    `cited_right` and `truth_found` count them against the truth, where a line with the same wording as a true line is
    as good (`truth_total` is 0 where the lines are not labelled).
    """

    incident: str
    source: str
    column: str
    truth: Truth
    ranking: tuple[str, ...]
    confidence: float
    accepted: bool
    entity: str
    cited: tuple[int, ...]
    shown: tuple[int, ...]
    cited_right: int
    truth_cited: int
    truth_shown: int
    truth_total: int
    seconds: float
    cost_usd: float
    summary: str = ""
    cited_text: tuple[str, ...] = ()
    features: tuple[float, ...] = ()

    @property
    def category(self) -> str:
        """The answer."""
        return self.ranking[0] if self.ranking else "unknown"

    @property
    def right(self) -> bool:
        """Whether the answer is right (an abstention is not)."""
        return self.truth.right(self.category)
