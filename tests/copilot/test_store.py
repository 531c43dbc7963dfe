"""What is accepted is on disk, shared commits keep neighbours apart, and a page reads what it needs."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intake_kit import HandClock, alert_json, alerts, finding, open_store, posted, pushed

from midwatch.copilot import codec
from midwatch.copilot.claims import Claim, Failure, Outcome, Sent
from midwatch.copilot.commits import GroupCommit
from midwatch.copilot.model import Finding
from midwatch.copilot.store import Store, StoreError
from midwatch.copilot.tables import metadata
from midwatch.errors import SettingsError


def outcome(claim: Claim, found: Finding | None = None, lines: tuple[str, ...] = ("one",)) -> Outcome:
    return Outcome(
        claim=claim, finding=found or finding(), lines=codec.pack_lines(lines), messages=(("slack", '{"text": "x"}'),)
    )


async def claimed(store: Store) -> Claim:
    claim = await store.claim()
    assert claim is not None
    return claim


async def test_what_was_accepted_is_on_disk_before_accept_returns(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await store.accept(alerts(alert_json("A")))
    with closing(sqlite3.connect(f"file:{tmp_path / 'midwatch.db'}?mode=ro", uri=True)) as other:
        assert other.execute("select title from events").fetchall() == [("A on nginx",)]
        assert other.execute("pragma journal_mode").fetchone() == ("wal",)
    store.close()


async def test_every_connection_flushes_each_commit_and_checks_foreign_keys(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for engine in (store._write_engine, store._read_engine):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("pragma synchronous").scalar() == 2
            assert connection.exec_driver_sql("pragma foreign_keys").scalar() == 1
    store.close()


def test_the_database_is_for_this_user_only(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new")
    store.close()
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert (tmp_path / "new" / "midwatch.db").stat().st_mode & 0o077 == 0


async def test_ten_thousand_identical_alerts_are_one_incident(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    event = alerts(alert_json())
    await asyncio.gather(*(store.accept(event * 100) for _ in range(100)))
    (view,) = store.list_incidents()
    assert (view.deliveries, view.events) == (10_000, 1)
    assert store.commits < 100
    store.close()


async def test_concurrent_requests_share_commits_and_each_learns_its_own_result(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    jobs = [store.accept(alerts(alert_json("A", f"s{n % 10}"), alert_json("B", f"s{n % 10}"))) for n in range(200)]
    receipts = await asyncio.gather(*jobs)
    assert store.commits < 150
    assert sum(receipt.events for receipt in receipts) == 20
    assert sum(receipt.duplicates for receipt in receipts) == 380
    assert sum(receipt.opened for receipt in receipts) == 10
    by_service = {view.service: view.id for view in store.list_incidents()}
    assert all(receipt.incidents == (by_service[f"s{n % 10}"],) for n, receipt in enumerate(receipts))
    store.close()


async def test_one_poisonous_job_does_not_harm_its_neighbours(tmp_path: Path) -> None:
    table = sa.Table("t", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    table.metadata.create_all(engine)
    commits: list[int] = []
    writer = GroupCommit(engine, after_commit=lambda: commits.append(1))

    def insert(connection: sa.Connection, items: object) -> list[int]:
        numbers = list(items)  # type: ignore[call-overload]
        connection.execute(table.insert(), [{"n": number} for number in numbers])
        return numbers

    results = await asyncio.gather(*(writer.run(insert, n) for n in (1, 2, 2, 3)), return_exceptions=True)
    writer.close()
    assert [result for result in results if isinstance(result, int)] == [1, 2, 3]
    assert sum(isinstance(result, StoreError) for result in results) == 1
    with engine.connect() as connection:
        assert connection.execute(sa.select(table.c.n).order_by(table.c.n)).scalars().all() == [1, 2, 3]
    with pytest.raises(StoreError):
        writer.submit(insert, 9)
    engine.dispose()


async def test_a_full_disk_is_said_and_nothing_of_the_delivery_is_kept(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'midwatch.db'}", max_bytes=300_000)
    await store.accept(posted("before"))
    with pytest.raises(StoreError, match="full"):
        await store.accept(posted(os.urandom(800_000).hex(), "other"))
    assert [view.service for view in store.list_incidents()] == ["nginx"]
    assert (await store.accept(posted("after"))).events == 1
    store.close()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("sqlite://", "in-memory"),
        ("not a url", "URL"),
        ("postgresql+nodriver://x/y", "driver"),
        ("sqlite:////proc/nowhere/midwatch.db", "written"),
    ],
)
def test_a_database_that_cannot_be_used_is_named(url: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word) as caught:
        Store(url)
    assert caught.value.next_step


def test_a_file_that_is_no_database_and_one_of_a_newer_midwatch_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_text("this is no database, it is a letter" * 100)
    with pytest.raises(SettingsError, match="not a database"):
        Store(f"sqlite:///{tmp_path / 'bad.db'}")
    open_store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "midwatch.db")) as connection, connection:
        connection.execute("update schema_version set version = 99")
    with pytest.raises(SettingsError, match="newer"):
        open_store(tmp_path)


def test_the_schema_can_be_made_on_postgresql() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))


async def test_an_incident_is_seen_with_its_finding_reasons_and_the_lines_that_were_read(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    await store.accept(alerts(alert_json("A")))
    await store.accept(alerts(alert_json("A"), alert_json("B")))
    clock.now += 30
    claim = await claimed(store)
    clock.now += 2
    await store.finish(outcome(claim, lines=("first", "second")))
    view = store.incident(claim.incident_id)
    assert view is not None and view.finding == finding() and view.lines == ("first", "second")
    assert view.state == "diagnosed" and view.diagnosed_at == clock.now and view.attempts == 1
    assert view.reasons == (
        "A on nginx: opened this incident; 1 repeated deliveries were merged",
        f"B on nginx: same service (nginx) within 900 s of incident {view.id}",
    )
    assert (view.deliveries, view.events) == (3, 2)
    (listed,) = store.list_incidents()
    assert listed.finding == finding() and listed.lines == () and listed.reasons == ()
    assert store.incident(999) is None
    totals = store.totals()
    assert (totals.incidents, totals.diagnosed, totals.tokens, totals.p50_s) == (1, 1, 120, 32.0)
    store.close()


async def test_the_list_is_newest_first_and_pages_by_id(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for n in range(5):
        await store.accept(alerts(alert_json("A", f"s{n}")))
    assert [view.service for view in store.list_incidents(limit=2)] == ["s4", "s3"]
    before = store.list_incidents(limit=2)[-1].id
    assert [view.service for view in store.list_incidents(limit=9, before_id=before)] == ["s2", "s1", "s0"]
    assert store.list_incidents(state="diagnosed") == []
    store.close()


async def test_a_case_holds_own_lines_and_what_the_service_logged_before_in_order_of_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    second = 1_000_000_000
    base = 1_700_000_000 * second
    await store.accept(pushed("third", "fourth", first_ns=base + 2 * second))
    await store.accept(pushed("first", first_ns=base))
    await store.accept(pushed("elsewhere", service="redis", first_ns=base))
    await store.accept(alerts(alert_json("A", severity="critical")))
    await store.accept(pushed("second: error", first_ns=base + second))
    (view,) = store.list_incidents()
    case = store.case(view.id)
    assert case.lines == ("first", "second: error", "third", "fourth")
    assert case.message == "A on nginx (critical): 5xx above 5 %"
    assert (case.service, case.title, case.severity) == ("nginx", "A on nginx", "critical")
    store.close()


async def test_a_case_keeps_the_newest_lines_where_there_are_too_many(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await store.accept(posted("\n".join(f"line {n}" for n in range(60_000))))
    (view,) = store.list_incidents()
    lines = store.case(view.id).lines
    assert len(lines) == 50_000 and lines[0] == "line 10000" and lines[-1] == "line 59999"
    store.close()


async def test_old_log_lines_are_forgotten_but_none_that_still_wait_for_a_diagnosis(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock, log_retention_hours=1)
    await store.accept(posted("broken", "a"))
    await store.accept(posted("broken", "b"))
    await store.accept(pushed("context"))
    clock.now += 60
    done = await claimed(store)
    await store.finish(outcome(done))
    clock.now += 3_600
    assert await store.prune() == 2
    (waiting,) = store.list_incidents(state="waiting")
    assert store.case(waiting.id).lines == ("broken",)
    seen = store.incident(done.incident_id)
    assert seen is not None and seen.lines == ("one",)
    store.close()


async def test_a_pushed_log_sent_twice_is_kept_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for events in (pushed("fine"), pushed("error: broken")):
        assert (await store.accept(events)).duplicates == 0
        assert (await store.accept(events)).duplicates == 1
    (view,) = store.list_incidents()
    assert store.case(view.id).lines == ("fine", "error: broken")
    store.close()


async def test_a_text_posted_again_after_the_window_is_a_new_incident(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    assert (await store.accept(posted("broken"))).opened == 1
    clock.now += 800
    assert (await store.accept(posted("broken"))).duplicates == 1
    clock.now += 5_000
    assert (await store.accept(posted("broken"))).opened == 1
    store.close()


async def test_a_dead_process_leaves_nothing_under_way(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    await store.accept(alerts(alert_json("A", "one")))
    await store.accept(alerts(alert_json("A", "two")))
    clock.now += 10
    await store.finish(outcome(await claimed(store)))
    await claimed(store)
    message = await store.claim_message()
    assert message is not None and await store.claim() is None and await store.claim_message() is None
    store.close()
    store = open_store(tmp_path, clock)
    assert await store.recover() == 1
    again = await store.claim()
    repeated = await store.claim_message()
    assert again is not None and again.attempts == 2
    assert repeated is not None and repeated.delivery_id == message.delivery_id and repeated.attempts == 2
    store.close()


async def test_an_incident_that_was_under_way_at_two_deaths_lets_the_others_go_first(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    await store.accept(alerts(alert_json("A", "poison")))
    clock.now += 10
    for _ in range(2):
        poison = await claimed(store)
        await store.recover((60.0,))
    await store.accept(alerts(alert_json("A", "fine")))
    clock.now += 10
    other = await claimed(store)
    assert other.incident_id != poison.incident_id
    assert await store.claim() is None
    clock.now += 60
    assert (await claimed(store)).incident_id == poison.incident_id
    store.close()


async def test_a_message_is_written_once_per_answer(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    await store.accept(alerts(alert_json()))
    for number, category in enumerate(("unknown", "unknown", "disk_full")):
        clock.now += 100
        if number:
            await store.accept(pushed(f"error: {number}", first_ns=1_700_000_000_000_000_000 + number))
            clock.now += 100
        await store.finish(outcome(await claimed(store), finding(category)))
    clock.now += 100
    await store.accept(pushed("error: last"))
    clock.now += 100
    assert await store.claim() is None
    assert store.outbox_states() == {"pending": 2}
    store.close()


async def test_lines_that_came_in_while_an_unknown_was_diagnosed_are_read_too(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    await store.accept(alerts(alert_json()))
    clock.now += 10
    claim = await claimed(store)
    await store.accept(pushed("No space left on device"))
    await store.finish(outcome(claim, finding("unknown")))
    assert (await claimed(store)).version == 2
    store.close()


async def test_failures_and_fates_are_seen(tmp_path: Path) -> None:
    clock = HandClock()
    store = open_store(tmp_path, clock)
    await store.accept(alerts(alert_json()))
    clock.now += 10
    claim = await claimed(store)
    await store.fail(Failure(claim=claim, error="the host is away", retry_in_s=5.0))
    view = store.incident(claim.incident_id)
    assert view is not None and (view.state, view.attempts, view.last_error) == ("waiting", 1, "the host is away")
    assert await store.claim() is None
    clock.now += 5
    await store.finish(outcome(await claimed(store)))
    message = await store.claim_message()
    assert message is not None
    await store.settle_message(Sent(id=message.id, error="404: no such hook"))
    view = store.incident(claim.incident_id)
    assert view is not None and view.last_error == "slack: 404: no such hook" and view.notified_at is None
    assert store.outbox_states() == {"failed": 1}
    store.close()


async def test_a_change_wakes_whoever_waits_and_a_quiet_store_lets_them_go(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    seen = store.changes
    assert await store.wait_change(seen, 0.01) == seen
    waiting = [asyncio.create_task(store.wait_change(seen, 30)) for _ in range(3)]
    await asyncio.sleep(0)
    await store.accept(alerts(alert_json()))
    assert all(change > seen for change in await asyncio.gather(*waiting))
    assert await store.wait_change(seen, 30) > seen
    store.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(list(range(6))), cuts=st.sets(st.integers(1, 5)))
def test_however_alerts_are_ordered_and_cut_into_requests_the_incidents_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cuts: set[int]
) -> None:
    items = [alert_json(name, service) for service in ("nginx", "redis") for name in ("A", "B", "C")]

    async def groups() -> set[frozenset[str]]:
        store = open_store(tmp_path_factory.mktemp("store"))
        edges = [0, *sorted(cuts), 6]
        requests = [alerts(*(items[n] for n in order[a:b])) for a, b in itertools.pairwise(edges)]
        await asyncio.gather(*(store.accept(request) for request in requests))
        found = {frozenset(store.case(view.id).message.splitlines()) for view in store.list_incidents()}
        store.close()
        return found

    found = asyncio.run(groups())
    assert len(found) == 2 and all(len(group) == 3 for group in found)


def test_a_finding_survives_the_store() -> None:
    found = finding(summary="Ünïcode \x00 <b>", ranking=())
    assert codec.finding_from_json(codec.finding_to_json(found)) == found
