"""The counters that an SRE scrapes, in a registry of their own, so that two apps in one process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from midwatch.copilot.model import Finding
from midwatch.copilot.placing import Receipt
from midwatch.copilot.store import Store

_INTAKE_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_DIAGNOSIS_BUCKETS_S = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts since the start of the process; gauges read from the store when scraped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = self._counter
        self.events = counter("midwatch_events", "Events accepted and on disk, duplicates included.", "source")
        self.duplicates = counter("midwatch_duplicate_events", "Accepted events that were known already.", "source")
        self.refused = counter("midwatch_refused_requests", "Requests to a hook that were refused.", "source", "status")
        self.opened = counter("midwatch_incidents_opened", "Incidents opened.")
        self.diagnoses = counter("midwatch_diagnoses", "Diagnoses stored.", "category", "action")
        self.model_calls = counter("midwatch_model_calls", "Calls made to a model host.", "provider")
        self.model_failures = counter("midwatch_model_call_failures", "Calls that a host did not answer.", "provider")
        self.tokens = counter("midwatch_tokens", "Prompt and answer tokens of stored diagnoses.")
        self.cost = counter("midwatch_cost_usd", "Cost of stored diagnoses, US dollars.")
        self.intake_s = Histogram(
            "midwatch_intake_seconds",
            "From the request's head to the answer, commit included.",
            ["source"],
            registry=self.registry,
            buckets=_INTAKE_BUCKETS_S,
        )
        self.diagnosis_s = Histogram(
            "midwatch_diagnosis_seconds",
            "The model's part of a diagnosis.",
            registry=self.registry,
            buckets=_DIAGNOSIS_BUCKETS_S,
        )
        self.incidents = Gauge("midwatch_incidents", "Incidents by state.", ["state"], registry=self.registry)
        self.outbox = Gauge("midwatch_outbox_messages", "Messages by state.", ["state"], registry=self.registry)
        self.commits = Gauge("midwatch_store_commits", "Commits of this process.", registry=self.registry)

    def count_receipt(self, source: str, receipt: Receipt) -> None:
        """Count a delivery that is on disk."""
        self.events.labels(source).inc(receipt.events + receipt.duplicates)
        self.duplicates.labels(source).inc(receipt.duplicates)
        self.opened.inc(receipt.opened)

    def count_finding(self, finding: Finding) -> None:
        """Count a diagnosis that is on disk."""
        diagnosis = finding.diagnosis
        self.diagnoses.labels(diagnosis.category, diagnosis.action).inc()
        self.tokens.inc(diagnosis.prompt_tokens + diagnosis.completion_tokens)
        self.cost.inc(diagnosis.cost_usd)
        self.diagnosis_s.observe(diagnosis.latency_ms / 1000)

    def scrape(self, store: Store) -> bytes:
        """The text format of Prometheus. Reads the store, so call it off the event loop."""
        totals = store.totals()
        for state, count in (
            ("waiting", totals.waiting),
            ("diagnosing", totals.diagnosing),
            ("diagnosed", totals.diagnosed),
        ):
            self.incidents.labels(state).set(count)
        states = store.outbox_states()
        for state in ("pending", "claimed", "sent", "failed"):
            self.outbox.labels(state).set(states.get(state, 0))
        self.commits.set(store.commits)
        return generate_latest(self.registry)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(name, help_, labels, registry=self.registry)
