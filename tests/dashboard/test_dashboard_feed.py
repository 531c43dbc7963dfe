"""Changes as server-sent events."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from dashboard_site import serve
from markup import Page
from sample_incidents import NOW, MemoryReader, incident, many, twelve

from midwatch.dashboard.feed import Change, Feed, Snapshot, difference, encode, stream, until
from midwatch.settings import Settings


async def read_message(answer) -> str:
    """The next message of a stream: its data, without comments."""
    data: list[str] = []
    while True:
        line = (await asyncio.wait_for(answer.content.readline(), 5)).decode().rstrip("\n")
        if line.startswith("data: "):
            data.append(line[6:])
        elif not line and data:
            return "\n".join(data)


def snapshot(*views) -> Snapshot:
    reader = MemoryReader(views)
    return Snapshot(revision=1, incidents=tuple(reader.list_incidents()), totals=reader.totals())


async def test_a_stream_begins_with_the_whole_list(site):
    async with site.session.get(site.url + "/events") as answer:
        assert answer.content_type == "text/event-stream"
        first = await read_message(answer)
    assert 'hx-target="#list"' in first
    assert first.count("data-row") == 12
    assert Page(first).breaches() == []


async def test_a_change_is_sent_within_a_second_and_alone(site):
    async with site.session.get(site.url + "/events") as answer:
        await read_message(answer)
        changed = replace(site.reader.incident(9), last_error="", state="diagnosing")
        begun = time.perf_counter()
        site.reader.put(changed)
        message = await read_message(answer)
        assert time.perf_counter() - begun < 1.0
    assert 'hx-target="#incident-9"' in message
    assert message.count("data-row") == 1
    assert 'hx-target="#totals"' in message
    assert Page(message).breaches() == []


async def test_a_new_incident_goes_on_top_and_is_announced_politely(site):
    async with site.session.get(site.url + "/events") as answer:
        await read_message(answer)
        site.reader.put(incident(13, "cart", "CartDown"))
        message = await read_message(answer)
    assert 'hx-target="#incident-list" hx-swap="afterbegin"' in message
    assert 'id="incident-13"' in message
    assert "1 new incident" in message


async def test_an_answer_is_announced_with_its_words(site):
    async with site.session.get(site.url + "/events") as answer:
        await read_message(answer)
        site.reader.put(replace(site.reader.incident(10), state="diagnosed", finding=site.reader.incident(11).finding))
        message = await read_message(answer)
    assert "Incident 10, Connections exhausted: PostgreSQL is out of connections" in message


async def test_an_open_incident_is_drawn_anew_when_it_is_diagnosed_and_not_for_its_neighbours(site):
    async with site.session.get(site.url + "/events?incident=10") as answer:
        first = await read_message(answer)
        assert "The model is reading the log." in first
        site.reader.put(replace(site.reader.incident(9), attempts=4))
        found = site.reader.incident(11).finding
        site.reader.put(replace(site.reader.incident(10), state="diagnosed", diagnosed_at=NOW, finding=found))
        second = await read_message(answer)
    assert "Above the threshold." in second
    assert Page(second).breaches() == []


async def test_a_reconnect_gets_everything_whatever_it_saw_before(site):
    for last_seen in ("1", "999999", "nonsense"):
        async with site.session.get(site.url + "/events", headers={"Last-Event-ID": last_seen}) as answer:
            assert (await read_message(answer)).count("data-row") == 12


async def test_the_first_incident_replaces_the_empty_page(tmp_path):
    async for site in serve(MemoryReader(), Settings(state_dir=tmp_path)):
        async with site.session.get(site.url + "/events") as answer:
            assert "Nothing to watch yet" in await read_message(answer)
            site.reader.put(incident(1, "cart", "CartDown"))
            message = await read_message(answer)
        assert 'hx-target="#list"' in message
        assert "CartDown" in message


async def test_a_silent_stream_beats():
    reader = MemoryReader(twelve())

    async def nothing(revision: int) -> str:
        return ""

    messages = stream(reader, nothing, heartbeat_s=0.01, pace_s=0.0)
    assert (await anext(messages)).startswith(b"retry:")
    assert await anext(messages) == b": heartbeat\n\n"
    assert await anext(messages) == b": heartbeat\n\n"
    await messages.aclose()


async def test_an_app_that_stops_ends_the_open_streams():
    reader = MemoryReader(twelve())

    async def draw(revision: int) -> str:
        return f"<p>{revision}</p>"

    stopping = asyncio.Event()
    messages = until(stopping, stream(reader, draw, heartbeat_s=3600.0, pace_s=0.0))
    assert (await anext(messages)).startswith(b"retry:")
    assert b"<p>1</p>" in await anext(messages)
    waiting = asyncio.ensure_future(anext(messages, None))
    await asyncio.wait({waiting}, timeout=0.01)
    assert not waiting.done()
    stopping.set()
    assert await asyncio.wait_for(waiting, 5) is None


async def test_many_changes_at_once_are_one_message():
    reader = MemoryReader(twelve())
    drawn: list[int] = []

    async def draw(revision: int) -> str:
        drawn.append(revision)
        return f"<p>{revision}</p>"

    messages = stream(reader, draw, heartbeat_s=5.0, pace_s=0.01)
    await anext(messages)
    await anext(messages)
    for _ in range(500):
        reader.touch()
    assert await anext(messages) == b"id: 501\ndata: <p>501</p>\n\n"
    assert drawn == [1, 501]
    await messages.aclose()


async def test_the_store_is_read_once_for_all_open_pages():
    reader = MemoryReader(twelve())
    feed = Feed(reader, 100)
    await asyncio.gather(*(feed.snapshot(7) for _ in range(20)))
    await feed.snapshot(6)
    assert reader.reads == 1


def test_nothing_different_is_no_change():
    assert difference(snapshot(*twelve()), snapshot(*twelve())) == Change(whole=False)


def test_a_row_pushed_off_the_end_is_removed():
    before, after = many(10), many(11)[1:]
    change = difference(snapshot(*before), snapshot(*(before[1:] + after[-1:])))
    assert [view.id for view in change.added] == [11]
    assert [view.id for view in change.removed] == [1]


@pytest.mark.parametrize("after", [(), (1, 2, 4), (20, 21), (1, 2, 3, 4, 5, 6)])
def test_a_list_that_cannot_be_patched_is_drawn_anew(after):
    views = {view.id: view for view in many(30)}
    before = snapshot(views[1], views[2], views[4], views[5])
    assert difference(before, snapshot(*(views[n] for n in after))).whole or set(after) == {1, 2, 4}


def test_a_row_that_left_the_top_draws_the_list_anew():
    views = many(3)
    assert difference(snapshot(*views), snapshot(*views[:2])).whole


def test_a_message_cannot_be_split_by_the_text_it_carries():
    assert encode("a\r\nb\rc\n\nid: 9", 3) == b"id: 3\ndata: a\ndata: b\ndata: c\ndata: \ndata: id: 9\n\n"
