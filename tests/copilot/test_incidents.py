"""Which incident an event belongs to: examples of each rule, and properties of all of them together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intake_kit import alert_json, alerts, posted, pushed

from midwatch.copilot.incidents import Arrival, Board, Placement, Rules, arrival, looks_wrong
from midwatch.copilot.model import Event

NOW = 1_800_000_000.0
RULES = Rules(group_window_s=900, settle_s=1, settle_max_s=10)


def place(board: Board, *events: Event, now: float = NOW) -> list[Placement]:
    return board.place_all([arrival(event) for event in events], now)


def one(board: Board, events: list[Event], now: float = NOW) -> Placement:
    (placement,) = place(board, *events, now=now)
    return placement


def test_the_same_delivery_again_is_a_duplicate_however_late() -> None:
    board = Board(RULES)
    first = one(board, alerts(alert_json()))
    again = one(board, alerts(alert_json()), NOW + 100_000)
    assert again.duplicate and again.incident_id == first.incident_id and len(board.incidents) == 1
    incident = board.incidents[first.incident_id or 0]
    assert (incident.deliveries, incident.events) == (2, 1)


def test_an_alert_of_the_same_service_joins_within_the_window_and_says_why() -> None:
    board = Board(RULES)
    first = one(board, alerts(alert_json("A")))
    near = one(board, alerts(alert_json("B")), NOW + 899)
    far = one(board, alerts(alert_json("C")), NOW + 899 + 901)
    assert near.incident_id == first.incident_id
    assert near.reason == "same service (nginx) within 900 s of incident {incident}"
    assert far.incident_id != first.incident_id


def test_alerts_of_other_or_unnamed_services_stay_apart() -> None:
    board = Board(RULES)
    nameless = [alert_json(name, labels={"alertname": name}) for name in ("A", "B")]
    place(board, *alerts(alert_json("A", "nginx"), alert_json("A", "redis"), *nameless))
    assert len(board.incidents) == 4


def test_an_alert_that_fires_anew_while_its_incident_is_open_joins_it() -> None:
    board = Board(RULES)
    first = one(board, alerts(alert_json()))
    again = one(board, alerts(alert_json(startsAt="2026-01-02T05:00:00Z")), NOW + 5_000)
    assert not again.duplicate and again.incident_id == first.incident_id and again.reason == "same alert again"


def test_an_alert_that_resolved_long_ago_opens_a_new_incident() -> None:
    board = Board(RULES)
    first = one(board, alerts(alert_json()))
    one(board, alerts(alert_json(status="resolved")), NOW + 10)
    assert board.incidents[first.incident_id or 0].resolved_at == NOW + 10
    flapping = one(board, alerts(alert_json(startsAt="2026-01-02T03:20:00Z")), NOW + 500)
    assert flapping.incident_id == first.incident_id and "after it had resolved" in flapping.reason
    assert board.incidents[first.incident_id or 0].resolved_at is None
    one(board, alerts(alert_json(status="resolved", startsAt="2026-01-02T03:20:00Z")), NOW + 600)
    later = one(board, alerts(alert_json(startsAt="2026-01-03T03:20:00Z")), NOW + 50_000)
    assert later.incident_id != first.incident_id


def test_an_incident_is_resolved_when_its_last_alert_is() -> None:
    board = Board(RULES)
    a, _ = place(board, *alerts(alert_json("A"), alert_json("B")))
    incident = board.incidents[a.incident_id or 0]
    one(board, alerts(alert_json("A", status="resolved")), NOW + 5)
    assert incident.resolved_at is None and incident.firing == 1
    one(board, alerts(alert_json("B", status="resolved")), NOW + 9)
    assert incident.resolved_at == NOW + 9 and incident.firing == 0


def test_a_resolve_of_an_unknown_alert_opens_nothing_and_a_late_firing_is_over_at_once() -> None:
    board = Board(RULES)
    assert one(board, alerts(alert_json(status="resolved"))).incident_id is None
    late = one(board, alerts(alert_json()), NOW + 3)
    incident = board.incidents[late.incident_id or 0]
    assert incident.resolved_at == NOW + 3 and incident.state == "waiting"


def test_a_log_joins_its_service_or_opens_only_if_a_line_looks_wrong() -> None:
    board = Board(RULES)
    assert one(board, pushed("GET / 200")).incident_id is None
    opened = one(board, pushed("GET / 200", "connect() failed (111: Connection refused)"))
    assert opened.incident_id is not None
    assert "failed" in board.incidents[opened.incident_id].title
    assert one(board, pushed("GET /ok 200")).incident_id == opened.incident_id
    assert one(board, pushed("GET /ok 200", service="redis")).incident_id is None


def test_fine_log_lines_do_not_keep_an_incident_open() -> None:
    board = Board(RULES)
    first = one(board, alerts(alert_json()))
    one(board, pushed("fine"), NOW + 800)
    later = one(board, alerts(alert_json("B")), NOW + 1_000)
    assert later.incident_id != first.incident_id


def test_a_trickle_of_trouble_does_not_keep_one_incident_for_ever() -> None:
    board = Board(RULES)
    ids = {
        one(board, pushed("error", first_ns=1_700_000_000_000_000_000 + n), NOW + n * 600).incident_id
        for n in range(30)
    }
    assert 2 <= len(ids) <= 4


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("ERROR could not connect", True),
        ("java.lang.NullPointerException", True),
        ("E0102 12:00:00.000 kubelet.go:12] boom", True),
        ("Out of memory: Killed process 12 (java)", True),
        ("permission denied", True),
        ('level=info msg="retry after error"', False),
        ("finished: 0 errors, 12 files", False),
        ("failed=0 ok=12", False),
        ("0 errors but 1 failed", True),
        ("GET /terrors 200", False),
        ("", False),
        ("x" * 5_000_000, False),
    ],
)
def test_the_cheap_look_at_a_line(line: str, wrong: bool) -> None:
    assert looks_wrong(line) is wrong


def test_a_diagnosed_incident_waits_again_only_for_more_log_while_unknown_or_worse_trouble() -> None:
    board = Board(RULES)
    first = one(board, alerts(alert_json()))
    incident = board.incidents[first.incident_id or 0]
    incident.state, incident.category, incident.diagnoses = "diagnosed", "disk_full", 1
    place(board, *alerts(alert_json("B")), *alerts(alert_json()), *pushed("error: disk"))
    assert incident.state == "diagnosed"
    place(board, *alerts(alert_json("C", severity="critical")))
    assert incident.state == "waiting" and incident.severity == "critical"
    incident.state, incident.category, incident.diagnoses = "diagnosed", "unknown", 2
    place(board, *alerts(alert_json("D")))
    assert incident.state == "diagnosed"
    place(board, *pushed("error: more"))
    assert incident.state == "waiting"
    incident.state, incident.diagnoses = "diagnosed", 3
    place(board, *pushed("error: still more"))
    assert incident.state == "diagnosed"


def test_an_incident_settles_when_it_is_quiet_and_waits_no_longer_than_the_most() -> None:
    board = Board(RULES)
    first = one(board, alerts(alert_json("A")))
    incident = board.incidents[first.incident_id or 0]
    assert incident.due_at == NOW + 1
    for n in range(1, 30):
        one(board, alerts(alert_json(f"A{n}")), NOW + n * 0.9)
    assert incident.due_at == NOW + 10


_names = st.sampled_from(["A", "B", "C"])
_services = st.sampled_from(["nginx", "redis", ""])


@st.composite
def deliveries(draw: st.DrawFn) -> list[Event]:
    kind = draw(st.sampled_from(["alert", "alert", "log", "text"]))
    service = draw(_services)
    if kind == "log":
        return pushed(
            *draw(st.lists(st.sampled_from(["fine", "error: x", "ok", "timeout"]), min_size=1, max_size=3)),
            service=service,
        )
    if kind == "text":
        return posted(draw(st.sampled_from(["one", "two"])), service)
    changes: dict[str, Any] = {"status": draw(st.sampled_from(["firing", "resolved"]))}
    changes["startsAt"] = draw(st.sampled_from(["2026-01-02T03:04:05Z", "2026-01-02T04:04:05Z", ""]))
    if draw(st.booleans()):
        changes["fingerprint"] = draw(st.sampled_from(["f1", "f2"]))  # a sender may give one to alerts of any service
    return alerts(alert_json(draw(_names), service, **changes))


def partition(batches: list[list[Arrival]]) -> set[frozenset[str]]:
    """The incidents, each as the set of deliveries that it holds; context that joined none is left out."""
    board = Board(RULES)
    groups: dict[int, set[str]] = {}
    for batch in batches:
        for item in board.place_all(batch, NOW):
            if item.incident_id is not None:
                groups.setdefault(item.incident_id, set()).add(item.dedup_key)
    return {frozenset(group) for group in groups.values()}


@settings(max_examples=200)
@given(st.lists(deliveries(), max_size=12), st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_and_repetition_within_a_batch_do_not_change_the_incidents(
    pushes: list[list[Event]], random: Any, repeats: int
) -> None:
    batch = [arrival(event) for events in pushes for event in events]
    wanted = partition([batch])
    shuffled = batch + [random.choice(batch) for _ in range(repeats if batch else 0)]
    random.shuffle(shuffled)
    assert partition([shuffled]) == wanted


@settings(max_examples=200)
@given(st.lists(st.lists(deliveries(), max_size=4), max_size=5))
def test_no_alert_is_lost_and_counts_add_up(batches: list[list[list[Event]]]) -> None:
    board = Board(RULES)
    events = [event for batch in batches for events in batch for event in events]
    placements: list[Placement] = []
    for batch in batches:
        placements += place(board, *(event for events in batch for event in events))
    firing = [item for item in placements if item.arrival.event.status == "firing"]
    assert all(item.incident_id is not None for item in firing)
    attached = [item for item in placements if item.incident_id is not None]
    assert sum(incident.deliveries for incident in board.incidents.values()) == len(attached)
    assert sum(incident.events for incident in board.incidents.values()) == len({item.dedup_key for item in attached})
    assert len(placements) == len(events)
    assert all(incident.firing >= 0 for incident in board.incidents.values())


def test_ten_thousand_services_at_once_are_placed_in_a_moment() -> None:
    board = Board(RULES)
    place(board, *(event for n in range(10_000) for event in alerts(alert_json("A", f"service{n}"))))
    assert len(board.incidents) == 10_000
