"""What the tests of recall share: a store with runbooks and judged incidents, and a small encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from intake_kit import alert_json, alerts, open_store, pushed

from midwatch.copilot import codec
from midwatch.copilot.bm25 import words
from midwatch.copilot.claims import Outcome
from midwatch.copilot.model import Feedback, Finding, Verdict
from midwatch.copilot.runbooks import Runbook, Section
from midwatch.copilot.store import Store

SYNONYMS = {"storage": "disk", "volume": "disk", "exhausted": "full", "resolver": "dns", "lookup": "dns"}


class SmallEncoder:
    """Adds up a fixed random direction for each word, the same one for words that mean the same."""

    name = "small"

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.encoded += texts
        rows = np.zeros((len(texts), 64), dtype=np.float32)
        for place, text in enumerate(texts):
            for word in words(text):
                seed = int.from_bytes(SYNONYMS.get(word, word).encode()[:8].ljust(8), "little")
                rows[place] += np.random.default_rng(seed).standard_normal(64)
            rows[place] /= np.linalg.norm(rows[place]) or 1.0
        return rows


def book(name: str, text: str, *, heading: str = "Mitigation", title: str = "", url: str = "") -> Runbook:
    return Runbook(
        name=name,
        title=title or name,
        url=url,
        digest=str(hash(text)),
        sections=(Section(heading=heading, text=text),),
    )


BOOKS = (
    book("DiskFull", "1. Find what grew: `du -xh`.\n2. Rotate the logs.", url="https://wiki.example/disk"),
    book("DnsDown", "Restart the resolver pods; names resolve again."),
    book("CertificateExpires", "Renew the certificate with cert-manager."),
)


async def diagnosed(
    store: Store, finding: Finding, *, alert: str = "DiskAlert", service: str = "db", lines: Sequence[str] = ()
) -> int:
    """An incident that was reported, read and diagnosed; its number."""
    receipt = await store.accept(alerts(alert_json(alert, service)))
    if lines:
        await store.accept(pushed(*lines, service=service))
    claim = await store.claim()
    assert claim is not None
    assert claim.incident_id in receipt.incidents
    await store.finish(Outcome(claim=claim, finding=finding, lines=codec.pack_lines(lines), messages=()))
    return claim.incident_id


async def judged(store: Store, incident_id: int, verdict: Verdict, category: str = "", note: str = "") -> Feedback:
    return await store.add_feedback(Feedback(incident_id=incident_id, verdict=verdict, category=category, note=note))


def new_store(folder: Path) -> Store:
    return open_store(folder, settle_s=0.0, settle_max_s=0.0, group_window_s=0.0)
