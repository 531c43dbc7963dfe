"""What looks similar is found by words and by meaning, notices changes, and stays silent where nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from intake_kit import finding
from recall_kit import BOOKS, SmallEncoder, book, diagnosed, judged, new_store
from test_runbooks import shared_runbooks

from midwatch.copilot.evidence import build_evidence
from midwatch.copilot.findable import Question, question_of, spaced
from midwatch.copilot.model import Case
from midwatch.copilot.recall import ENCODED_AT_ONCE, Recall
from midwatch.copilot.runbooks import read_runbooks
from midwatch.copilot.store import Store


@pytest.fixture
def store(tmp_path: Path):
    opened = new_store(tmp_path)
    yield opened
    opened.close()


def refs(recall: Recall, text: str, k: int = 3) -> list[str]:
    return [item.ref for item in recall.search(Question(alert=text), k)]


async def test_an_alert_finds_its_runbook_with_its_steps_and_its_link(store: Store) -> None:
    await store.add_runbooks(BOOKS)
    case = Case(service="db", title="DiskFull: the disk is full", lines=("write failed: No space left on device",))
    (first, *_) = Recall(store).find(case, build_evidence(case))
    assert (first.kind, first.ref, first.url) == ("runbook", "DiskFull", "https://wiki.example/disk")
    assert (first.section, first.category) == ("Mitigation", "")
    assert first.steps == ("Mitigation: Find what grew: du -xh.", "Mitigation: Rotate the logs.")
    assert first.score == 1.0
    assert 0.3 < first.similarity <= 1.0


async def test_nothing_is_recalled_from_nothing_or_by_coincidence(store: Store) -> None:
    assert refs(Recall(store), "DiskFull") == []
    await store.add_runbooks(BOOKS)
    assert refs(Recall(store, SmallEncoder()), "the mouse ran up the clock") == []
    assert refs(Recall(store), "") == []
    assert refs(Recall(store), "logs of a thousand and one other things happening elsewhere") == []


async def test_what_is_added_or_removed_meanwhile_is_noticed(store: Store, tmp_path: Path) -> None:
    recall = Recall(store)
    assert refs(recall, "DiskFull disk") == []
    other = new_store(tmp_path)
    await other.add_runbooks(BOOKS)
    assert refs(recall, "DiskFull disk") == ["DiskFull"]
    await other.remove_runbooks("DiskFull")
    assert refs(recall, "DiskFull disk") == []
    other.close()


async def test_meaning_finds_what_shares_no_word(store: Store) -> None:
    await store.add_runbooks(BOOKS)
    assert refs(Recall(store), "storage exhausted") == []
    assert refs(Recall(store, SmallEncoder()), "storage exhausted")[0] == "DiskFull"


async def test_a_text_is_encoded_once_and_its_vector_kept(store: Store) -> None:
    await store.add_runbooks(BOOKS)
    first = SmallEncoder()
    refs(Recall(store, first), "storage")
    assert len(first.encoded) == len(BOOKS) + 1
    second = SmallEncoder()
    refs(Recall(store, second), "storage")
    assert second.encoded == ["storage"]


async def test_many_new_texts_wait_for_warm_and_can_be_found_by_words_meanwhile(store: Store) -> None:
    many = [book(f"Case{number}", f"number{number} of many") for number in range(2 * ENCODED_AT_ONCE)]
    await store.add_runbooks(many)
    encoder = SmallEncoder()
    recall = Recall(store, encoder)
    assert refs(recall, "Case3 number3 of many")[0] == "Case3"
    assert len(encoder.encoded) == ENCODED_AT_ONCE + 1
    assert recall.warm(stop=lambda: True) == 0
    assert recall.warm() == ENCODED_AT_ONCE
    assert len(set(encoder.encoded)) == 2 * ENCODED_AT_ONCE + 1
    assert recall.warm() == 0


async def test_both_rankings_count_alike(store: Store) -> None:
    await store.add_runbooks(BOOKS)
    recall = Recall(store, SmallEncoder())
    question = Question(alert="DiskFull volume")
    words, meaning = recall.rankings(question)
    assert words[0] == meaning[0] == ("runbook", "DiskFull")
    scores = {item.ref: item.score for item in recall.search(question, 10)}
    assert scores["DiskFull"] == 1.0
    only_meaning = [name for _, name in meaning if ("runbook", name) not in words]
    assert all(scores[name] <= 0.5 for name in only_meaning)


async def test_a_past_incident_is_recalled_with_the_cause_that_a_person_named(store: Store) -> None:
    number = await diagnosed(store, finding("disk_storage_full", line="No space left on /var/lib/pg"), alert="PgDown")
    case = Case(service="db", title="PgDown: PgDown on db", lines=("No space left on /var/lib/pg",))
    evidence = build_evidence(case)
    recall = Recall(store)
    assert recall.find(case, evidence) == ()
    await judged(store, number, "wrong", "oom_memory", "It was the page cache.")
    (found,) = recall.find(case, evidence)
    assert (found.kind, found.ref, found.category, found.steps) == ("incident", str(number), "oom_memory", ())
    assert "page cache" in found.excerpt


async def test_incidents_that_say_the_same_are_shown_once(store: Store) -> None:
    for number in range(4):
        incident = await diagnosed(store, finding("disk_storage_full"), service=f"db{number}")
        await judged(store, incident, "right")
    found = Recall(store).search(Question(alert="DiskAlert on db, disk is full"), 10)
    titles = [(item.title, item.category) for item in found]
    assert len(titles) == len(set(titles))


def test_the_question_is_the_alert_and_the_lines_that_the_rules_stand_on() -> None:
    noise = tuple(f"INFO request {number} served" for number in range(50))
    case = Case(service="db", title="PgDown", lines=(*noise, "ERROR write failed: No space left on device"))
    question = question_of(case, build_evidence(case))
    assert question.alert == "PgDown db"
    assert "No space left on device" in question.lines
    assert question_of(replace(case, lines=()), build_evidence(replace(case, lines=()))).lines == ""


def test_names_in_humps_paths_and_snake_case_become_words() -> None:
    assert spaced("KubePodNotReady node_disk/HTTPErrors") == "Kube Pod Not Ready node disk HTTP Errors"


async def test_alerts_find_their_public_runbooks_by_words_alone(store: Store) -> None:
    books = read_runbooks(shared_runbooks() / "prometheus-operator")
    await store.add_runbooks(books)
    alerts = [item.name for item in books if item.title == item.name.rpartition("/")[2]]
    recall = Recall(store)
    hits = [name in refs(recall, name.rpartition("/")[2]) for name in alerts]
    assert len(hits) > 80
    assert sum(hits) / len(hits) >= 0.95
