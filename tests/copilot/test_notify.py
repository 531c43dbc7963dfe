"""People are told once, in words that a log line cannot turn into markup."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from intake_kit import HandClock, Reader, Receiver, alert_json, alerts, finding, open_store
from pydantic import SecretStr

from midwatch.copilot.model import Citation
from midwatch.copilot.notify import Notifier, slack_body
from midwatch.copilot.store import Store
from midwatch.copilot.workflow import Workflow
from midwatch.settings import NotifySettings


async def diagnosed(folder: Path, clock: HandClock) -> Store:
    """A store with one diagnosed incident and its message in the outbox."""
    store = open_store(folder, clock)
    await store.accept(alerts(alert_json()))
    clock.now += 10
    workflow = Workflow(store, Reader(), page_url="http://page", channels=("slack",), clock=clock)
    assert await workflow.step()
    return store


def notifier(store: Store, url: str, clock: HandClock) -> Notifier:
    return Notifier(store, NotifySettings(slack_webhook_url=SecretStr(url)), clock=clock)


async def view_of(store: Store) -> Any:
    (view,) = store.list_incidents()
    return view


async def test_a_message_says_what_is_wrong_how_sure_and_where_to_read_on(tmp_path: Path) -> None:
    store = await diagnosed(tmp_path, HandClock())
    body = json.loads(slack_body(await view_of(store), finding(action="ask_person"), "http://page"))
    text = "\n".join(block["text"]["text"] for block in body["blocks"])
    for part in (
        "*The disk is full.*",
        "`disk_full`",
        "0.70 (uncalibrated)",
        "a person is needed",
        "• df -h",
        "1: write failed: No space left on device",
        "<http://page/incidents/1|Incident 1>",
    ):
        assert part in text
    assert body["text"] == "The disk is full. (disk_full)"
    store.close()


async def test_hostile_text_cannot_draw_links_mention_channels_or_leave_its_code_block(tmp_path: Path) -> None:
    store = await diagnosed(tmp_path, HandClock())
    evil = "``` <!channel> <http://evil|click> & \x1b[31m\u202e" + "<" * 5_000
    cited = tuple(Citation(id=f"L{n}", line_number=n, text=evil) for n in range(1, 5))
    found = finding(summary=evil[:200], citations=cited, entity=evil[:100], next_steps=(evil,))
    body = json.loads(slack_body(await view_of(store), found, "http://page"))
    texts = [block["text"]["text"] for block in body["blocks"]]
    code = next(text for text in texts if text.startswith("```"))
    assert code.count("```") == 2 and code.endswith("```")
    whole = "\n".join(texts[:-1]) + body["text"]
    assert "<" not in whole and ">" not in whole and "\x1b" not in whole and "\u202e" not in whole
    assert all(len(text) <= 3_000 for text in texts)
    assert not any(text.rstrip("`…").endswith(("&", "&l", "&lt", "&a")) for text in texts)
    store.close()


async def test_a_message_is_sent_once_with_its_key(tmp_path: Path) -> None:
    clock, receiver = HandClock(), Receiver()
    store = await diagnosed(tmp_path, clock)
    async with receiver.listening() as url:
        sender = notifier(store, url, clock)
        assert await sender.step() and not await sender.step()
        await sender.aclose()
    assert len(receiver.posts) == 1 and len(receiver.posts[0][0]) == 32
    assert (await view_of(store)).notified_at == clock.now
    assert store.outbox_states() == {"sent": 1}
    store.close()


async def test_a_receiver_in_trouble_is_asked_again_with_the_same_key_when_it_says(tmp_path: Path) -> None:
    clock, receiver = HandClock(), Receiver((503, {}), (429, {"Retry-After": "120"}))
    store = await diagnosed(tmp_path, clock)
    async with receiver.listening() as url:
        sender = notifier(store, url, clock)
        assert await sender.step() and not await sender.step()
        assert "503" in (await view_of(store)).last_error
        clock.now += 1
        assert await sender.step()
        clock.now += 119
        assert not await sender.step()
        clock.now += 1
        assert await sender.step()
        await sender.aclose()
    assert len({key for key, _ in receiver.posts}) == 1 and len(receiver.posts) == 3
    view = await view_of(store)
    assert view.last_error == "" and view.notified_at == clock.now
    store.close()


async def test_a_refusal_stops_and_is_seen(tmp_path: Path) -> None:
    clock, receiver = HandClock(), Receiver((404, {}))
    store = await diagnosed(tmp_path, clock)
    async with receiver.listening() as url:
        sender = notifier(store, url, clock)
        assert await sender.step()
        clock.now += 10_000
        assert not await sender.step()
        await sender.aclose()
    assert "404" in (await view_of(store)).last_error and store.outbox_states() == {"failed": 1}
    store.close()


@pytest.mark.parametrize(("url", "state"), [("http://127.0.0.1:9/hook", "pending"), ("not a url", "failed")])
async def test_a_receiver_that_is_not_there_is_tried_again_and_a_wrong_url_is_not(
    tmp_path: Path, url: str, state: str
) -> None:
    clock = HandClock()
    store = await diagnosed(tmp_path, clock)
    sender = notifier(store, url, clock)
    assert await sender.step()
    await sender.aclose()
    assert store.outbox_states() == {state: 1} and (await view_of(store)).last_error
    store.close()


async def test_a_message_that_was_claimed_when_the_process_died_is_sent_again_under_its_key(tmp_path: Path) -> None:
    clock, receiver = HandClock(), Receiver()
    store = await diagnosed(tmp_path, clock)
    lost = await store.claim_message()
    assert lost is not None
    store.close()
    store = open_store(tmp_path, clock)
    await store.recover()
    async with receiver.listening() as url:
        sender = notifier(store, url, clock)
        assert await sender.step()
        await sender.aclose()
    assert [key for key, _ in receiver.posts] == [lost.delivery_id]
    store.close()


async def test_the_loop_sends_as_soon_as_there_is_something_and_without_a_channel_it_ends(tmp_path: Path) -> None:
    receiver = Receiver()
    store = open_store(tmp_path, settle_s=0.0)
    workflow = Workflow(store, Reader(), page_url="http://page", channels=("slack",))
    async with receiver.listening() as url:
        sender = Notifier(store, NotifySettings(slack_webhook_url=SecretStr(url)))
        task = asyncio.create_task(sender.run())
        await store.accept(alerts(alert_json()))
        assert await workflow.step()
        async with asyncio.timeout(10):
            await receiver.heard.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await sender.aclose()
    await Notifier(store, NotifySettings()).run()
    store.close()
