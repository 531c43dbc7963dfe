"""Makers for the tests of evaluation: verdicts by a few facts, incidents whose triage is known."""

from __future__ import annotations

from typing import Any

from midwatch.copilot.model import Case, Diagnosis, Evidence, EvidenceLine, Finding, Ranked
from midwatch.evaluation.verdict import Verdict
from midwatch.foundry.incident import Incident, Truth


def verdict(
    name: str = "a",
    *,
    said: str = "oom_memory",
    true: str = "oom_memory",
    confidence: float = 0.9,
    accepted: bool = True,
    **more: Any,
) -> Verdict:
    """A verdict; whatever is not named is plain."""
    truth = more.pop("truth", None) or Truth(
        category=true, accepted=more.pop("also", ()), entities=more.pop("entities", ())
    )
    facts: dict[str, Any] = {
        "source": "kit",
        "column": "local",
        "ranking": (said,),
        "entity": "unknown",
        "cited": (),
        "shown": (),
        "cited_right": 0,
        "truth_cited": 0,
        "truth_shown": 0,
        "truth_total": 0,
        "seconds": 1.0,
        "cost_usd": 0.0,
    }
    return Verdict(incident=name, truth=truth, confidence=confidence, accepted=accepted, **{**facts, **more})


def incident(
    name: str, *lines: str, category: str = "oom_memory", true: tuple[int, ...] = (), **truth: Any
) -> Incident:
    """A labelled incident of these lines."""
    case = Case(service="shop", title="shop is down", lines=lines)
    return Incident(id=name, source="kit", case=case, truth=Truth(category=category, lines=frozenset(true), **truth))


def finding(
    case: Case,
    *,
    category: str = "oom_memory",
    shown: tuple[int, ...] = (),
    cited: tuple[int, ...] = (),
    **more: Any,
) -> Finding:
    """What triage would give back if it showed and cited these lines (1-based)."""
    from midwatch.copilot.model import Citation

    facts: dict[str, Any] = {
        "severity": "high",
        "entity": "unknown",
        "summary": "It is so.",
        "confidence": 0.9,
        "calibrated": True,
        "action": "accept",
        "next_steps": (),
        "provider": "kit",
        "model": "kit",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost_usd": 0.001,
        "ttft_ms": 10.0,
        "latency_ms": 2000.0,
        "ranking": (
            Ranked(category=category, score=0.7, line_ids=()),
            Ranked(category="dns_resolution", score=0.2, line_ids=()),
        ),
    }
    diagnosis = Diagnosis(
        category=category,
        citations=tuple(Citation(id=f"L{n}", line_number=n, text=case.lines[n - 1]) for n in cited),
        **{**facts, **more},
    )
    evidence = Evidence(
        lines=tuple(
            EvidenceLine(id=f"L{n}", line_number=n, text=case.lines[n - 1], shown=case.lines[n - 1], template="t")
            for n in shown
        ),
        ranking=(),
        entities=(),
        total_lines=len(case.lines),
        total_templates=1,
        tokens=10,
        mining_ms=1.0,
    )
    return Finding(evidence=evidence, diagnosis=diagnosis)
