"""What is kept for the next time: runbooks by name, people's verdicts, vectors; and what a verdict must be."""

from __future__ import annotations

from pathlib import Path

import pytest
from intake_kit import finding
from recall_kit import BOOKS, book, diagnosed, judged, new_store

from midwatch.copilot.memory import Added, Vectors
from midwatch.copilot.store import Store
from midwatch.errors import RequestError


@pytest.fixture
def store(tmp_path: Path):
    opened = new_store(tmp_path)
    yield opened
    opened.close()


async def test_runbooks_are_kept_with_their_sections_and_replaced_by_name(store: Store) -> None:
    assert await store.add_runbooks(BOOKS) == Added(new=3, changed=0, unchanged=0)
    assert store.runbooks() == sorted(BOOKS, key=lambda item: item.name)
    changed = book("DnsDown", "Call the network team.")
    assert await store.add_runbooks([BOOKS[0], changed]) == Added(new=0, changed=1, unchanged=1)
    assert [item for item in store.runbooks() if item.name == "DnsDown"] == [changed]


async def test_a_runbook_or_a_folder_of_them_can_be_removed(store: Store) -> None:
    await store.add_runbooks([book("db/a", "x"), book("db/b", "y"), book("db_c", "z"), book("dbase", "w")])
    assert await store.remove_runbooks("db/") == 2
    assert await store.remove_runbooks("db_c") == 1
    assert await store.remove_runbooks("d%") == 0
    assert [item.name for item in store.runbooks()] == ["dbase"]


async def test_another_process_sees_each_change(store: Store, tmp_path: Path) -> None:
    other = new_store(tmp_path)
    before = other.memory_revision()
    await store.add_runbooks([book("a", "x")])
    added = other.memory_revision()
    await store.add_runbooks([book("a", "y")])
    replaced = other.memory_revision()
    await judged(store, await diagnosed(store, finding("disk_storage_full")), "right")
    spoken = other.memory_revision()
    other.close()
    assert len({before, added, replaced, spoken}) == 4


async def test_a_verdict_stands_beside_its_incident_and_the_last_one_counts(store: Store) -> None:
    number = await diagnosed(store, finding("disk_storage_full"))
    await judged(store, number, "right")
    last = await judged(store, number, "wrong", "oom_memory", "It was\nmemory.")
    assert (last.version, last.note) == (1, "It was memory.")
    view = store.incident(number)
    assert view is not None
    assert view.feedback == last
    assert store.feedback() == [last]


@pytest.mark.parametrize(
    ("verdict", "category", "message"),
    [
        ("wrong", "gremlins", "is no category.*disk_storage_full"),
        ("wrong", "unknown", "is no category"),
        ("right", "oom_memory", "is not what incident 1 was diagnosed as"),
        ("wrong", "disk_storage_full", "is what incident 1 was diagnosed as"),
    ],
)
async def test_a_verdict_must_fit_its_diagnosis(store: Store, verdict: str, category: str, message: str) -> None:
    number = await diagnosed(store, finding("disk_storage_full"))
    with pytest.raises(RequestError, match=message):
        await judged(store, number, verdict, category)
    assert store.feedback() == []


async def test_an_incident_that_there_is_not_cannot_be_judged(store: Store) -> None:
    with pytest.raises(RequestError, match="no incident 7") as caught:
        await judged(store, 7, "right")
    assert caught.value.status == 404


async def test_only_an_incident_of_known_cause_is_remembered(store: Store) -> None:
    right = await diagnosed(store, finding("disk_storage_full"), alert="A")
    corrected = await diagnosed(store, finding("disk_storage_full"), alert="B")
    wrong = await diagnosed(store, finding("disk_storage_full"), alert="C")
    await diagnosed(store, finding("disk_storage_full"), alert="D")
    unclear = await diagnosed(store, finding("unknown"), alert="E")
    await judged(store, right, "right")
    await judged(store, corrected, "wrong", "dns_resolution")
    await judged(store, wrong, "wrong")
    await judged(store, unclear, "right")
    found = {item.id: item.category for item in store.past_incidents()}
    assert found == {right: "disk_storage_full", corrected: "dns_resolution"}


async def test_a_verdict_that_is_taken_back_is_forgotten(store: Store) -> None:
    number = await diagnosed(store, finding("disk_storage_full"))
    await judged(store, number, "right")
    await judged(store, number, "wrong")
    assert store.past_incidents() == []


async def test_vectors_are_kept_by_model_and_text(store: Store) -> None:
    store.keep_vectors(Vectors(model="m", by_digest={"a": b"1234", "b": b"5678"}))
    store.keep_vectors(Vectors(model="m", by_digest={"b": b"0000", "c": b"9999"}))
    assert store.vectors("m", ["a", "b", "c", "d"]) == {"a": b"1234", "b": b"5678", "c": b"9999"}
    assert store.vectors("n", ["a"]) == {}
    assert store.vectors("m", [str(number) for number in range(2_000)] + ["a"]) == {"a": b"1234"}
