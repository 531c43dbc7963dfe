"""Every settled incident is diagnosed, whatever a host or a neighbour does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from intake_kit import HandClock, Reader, alert_json, alerts, finding, open_store, posted, pushed

from midwatch.copilot.model import Case, Finding
from midwatch.copilot.store import Store
from midwatch.copilot.workflow import BACKOFF_S, STUCK_S, Diagnoser, Workflow
from midwatch.errors import ProviderError


def workflow(store: Store, diagnoser: Diagnoser, clock: HandClock) -> Workflow:
    return Workflow(store, diagnoser, page_url="http://page", channels=("slack",), clock=clock)


def failing(error: Exception, *services: str) -> Reader:
    """A diagnoser that raises for these services, or for all if none is named."""

    def answer(case: Case) -> Finding:
        if not services or case.service in services:
            raise error
        return finding()

    return Reader(answer)


async def test_ten_thousand_identical_alerts_cost_one_call(tmp_path: Path) -> None:
    clock, reader = HandClock(), Reader()
    store = open_store(tmp_path, clock)
    work = workflow(store, reader, clock)
    for _ in range(100):
        await asyncio.gather(*(store.accept(alerts(alert_json()) * 10) for _ in range(10)))
        clock.now += 1
        while await work.step():
            pass
    assert len(reader.cases) == 1 and store.totals().deliveries == 10_000
    assert store.outbox_states() == {"pending": 1}
    store.close()


async def test_an_incident_is_diagnosed_only_once_it_has_settled(tmp_path: Path) -> None:
    clock, reader = HandClock(), Reader()
    store = open_store(tmp_path, clock, settle_s=2.0, settle_max_s=5.0)
    work = workflow(store, reader, clock)
    await store.accept(alerts(alert_json("A")))
    clock.now += 1.5
    await store.accept(alerts(alert_json("B")))
    clock.now += 1.5
    assert not await work.step()
    clock.now += 0.5
    assert await work.step()
    assert reader.cases[0].message.count("nginx") == 2
    store.close()


async def test_a_host_that_is_away_leaves_the_incident_waiting_with_growing_pauses(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    work = workflow(store, failing(ProviderError("engine did not answer.", retryable=True)), clock)
    await store.accept(alerts(alert_json()))
    clock.now += 10
    for number, pause_s in enumerate([*BACKOFF_S, BACKOFF_S[-1]]):
        assert await work.step()
        (view,) = store.list_incidents()
        assert (view.state, view.attempts, view.last_error) == ("waiting", number + 1, "engine did not answer.")
        clock.now += pause_s - 0.1
        assert not await work.step()
        clock.now += 0.2
    assert await workflow(store, Reader(), clock).step()
    (view,) = store.list_incidents()
    assert view.state == "diagnosed" and view.last_error == ""
    store.close()


async def test_an_event_that_joins_a_failing_incident_does_not_shorten_its_pause(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    work = workflow(store, failing(ProviderError("wrong key.", retryable=False)), clock)
    await store.accept(alerts(alert_json("A")))
    clock.now += 10
    assert await work.step()
    await store.accept(alerts(alert_json("B")))
    clock.now += STUCK_S - 1
    assert not await work.step()
    clock.now += 2
    assert await work.step()
    store.close()


async def test_a_fault_in_one_incident_reaches_no_neighbour(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    work = workflow(store, failing(ZeroDivisionError("secret detail"), "poison"), clock)
    for service in ("a", "poison", "b"):
        await store.accept(alerts(alert_json("A", service)))
    clock.now += 10
    while await work.step():
        pass
    views = {view.service: view for view in store.list_incidents()}
    assert views["a"].state == views["b"].state == "diagnosed"
    assert views["poison"].state == "waiting" and "ZeroDivisionError" in views["poison"].last_error
    assert "secret detail" not in views["poison"].last_error
    store.close()


async def test_the_lines_that_were_read_are_kept_as_they_were(tmp_path: Path) -> None:
    clock, reader = HandClock(), Reader()
    store = open_store(tmp_path, clock)
    await store.accept(posted("one\ntwo: error"))
    clock.now += 10
    assert await workflow(store, reader, clock).step()
    await store.accept(pushed("three: error"))
    (view,) = store.list_incidents()
    whole = store.incident(view.id)
    assert whole is not None and whole.lines == reader.cases[0].lines == ("one", "two: error")
    store.close()


async def test_the_loop_works_by_itself_two_at_a_time_and_survives_a_stalled_host(tmp_path: Path) -> None:
    stalled, done = asyncio.Event(), asyncio.Event()
    found: list[str] = []

    class Host:
        async def diagnose(self, case: Case) -> Finding:
            if case.service == "slow":
                stalled.set()
                await asyncio.Event().wait()
            return finding(summary=case.service)

    def on_finding(item: Finding) -> None:
        found.append(item.diagnosis.summary)
        if len(found) == 3:
            done.set()

    store = open_store(tmp_path, settle_s=0.0)
    work = Workflow(store, Host(), page_url="http://page", on_finding=on_finding)
    task = asyncio.create_task(work.run())
    await store.accept(alerts(alert_json("A", "slow")))
    async with asyncio.timeout(20):
        await stalled.wait()
        for service in ("x", "y", "z"):
            await store.accept(alerts(alert_json("A", service)))
        await done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sorted(found) == ["x", "y", "z"]
    assert await store.recover() == 1
    store.close()
