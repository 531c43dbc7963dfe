"""The port to the store: what a page needs to read, and nothing more."""

from __future__ import annotations

from typing import Protocol

from midwatch.copilot.model import IncidentView


class Totals(Protocol):
    """Sums over all incidents. Times are seconds from opened to diagnosed; None while nothing is diagnosed."""

    @property
    def incidents(self) -> int:
        """Incidents ever opened."""

    @property
    def diagnosed(self) -> int:
        """Incidents with a diagnosis."""

    @property
    def asked_person(self) -> int:
        """Incidents that the last diagnosis left to a person."""

    @property
    def escalated(self) -> int:
        """Diagnoses for which the bigger model was asked."""

    @property
    def tokens(self) -> int:
        """Prompt and answer tokens of all diagnoses."""

    @property
    def cost_usd(self) -> float:
        """Cost of all diagnoses, US dollars."""

    @property
    def p50_s(self) -> float | None:
        """Median time to diagnosis, seconds."""

    @property
    def p95_s(self) -> float | None:
        """95th percentile of the time to diagnosis, seconds."""


class IncidentReader(Protocol):
    """What the dashboard reads. The blocking calls are made on a thread, `wait_change` on the event loop."""

    def list_incidents(self, limit: int = 100, before_id: int | None = None) -> list[IncidentView]:
        """The newest incidents first, older than `before_id` if given; `lines` may be empty."""

    def incident(self, incident_id: int) -> IncidentView | None:
        """One incident with its lines, or None if there is none of this id."""

    def totals(self) -> Totals:
        """Sums over all incidents."""

    async def wait_change(self, seen: int, timeout_s: float) -> int:
        """Return the revision as soon as it differs from `seen`, or `seen` itself after `timeout_s`."""
