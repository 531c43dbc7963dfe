"""What looked similar, and what a person said, on the page of an incident."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from dashboard_site import Site, serve
from sample_incidents import HOSTILE, MemoryReader, twelve

from midwatch.copilot.model import Feedback, IncidentView, Recalled
from midwatch.dashboard.incident_page import similar
from midwatch.settings import Settings


def recalled(**changes: Any) -> Recalled:
    values: dict[str, Any] = {
        "kind": "runbook",
        "ref": "db/DiskFull",
        "title": "DiskFull",
        "score": 1.0,
        "similarity": 0.82,
        "excerpt": "Rotate the logs.",
        "section": "Mitigation",
        "url": "https://wiki.example/DiskFull",
    }
    return Recalled(**{**values, **changes})


INCIDENT = recalled(kind="incident", ref="2", title="PgDown", url="", section="", category="oom_memory")


def answered(*items: Recalled, feedback: Feedback | None = None) -> IncidentView:
    view = next(view for view in twelve() if view.finding is not None)
    assert view.finding is not None
    return replace(view, finding=replace(view.finding, recalled=items), feedback=feedback)


@pytest.fixture
async def pages(tmp_path) -> AsyncIterator[Any]:
    async def page_of(view: IncidentView) -> str:
        async for site in serve(MemoryReader([view]), Settings(state_dir=tmp_path)):
            assert isinstance(site, Site)
            answer, text = await site.get(f"/incidents/{view.id}")
            assert answer.status == 200
        return text

    yield page_of


async def test_what_looked_similar_stands_beside_the_answer_with_its_source(pages) -> None:
    text = await pages(answered(recalled(), INCIDENT))
    assert "Looked similar" in text
    assert '<a href="https://wiki.example/DiskFull">DiskFull</a>' in text
    assert "Runbook, Mitigation, 82 % alike" in text
    assert '<a href="/incidents/2">PgDown</a>' in text
    assert "no part of the answer" in text


async def test_without_anything_similar_there_is_no_such_part(pages) -> None:
    assert "Looked similar" not in await pages(answered())


async def test_hostile_recalled_text_is_shown_and_never_run(pages) -> None:
    text = await pages(answered(recalled(title=HOSTILE, excerpt=HOSTILE, section=HOSTILE, url="javascript:alert(1)")))
    assert "<script>alert" not in text
    assert "javascript:" not in text
    assert "\x1b" not in text


async def test_a_persons_verdict_is_shown(pages) -> None:
    said = Feedback(incident_id=1, verdict="wrong", category="oom_memory", note="It was <memory>.", version=1)
    text = await pages(answered(feedback=said))
    assert "A person said that this was wrong" in text
    assert "It was &lt;memory&gt;." in text


def test_an_incident_is_not_shown_as_similar_to_itself() -> None:
    view = answered(INCIDENT, recalled(kind="incident", ref="3", title="Other"))
    own = replace(INCIDENT, ref=str(view.id))
    assert view.finding is not None
    view = replace(view, finding=replace(view.finding, recalled=(own, INCIDENT)))
    assert [item.link for item in similar(view)] == ["/incidents/2"]
