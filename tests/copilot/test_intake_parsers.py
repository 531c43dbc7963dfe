"""Bodies become events: the shapes that senders send, real ones and wrong ones."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intake_kit import ALERTMANAGER, LOKI, TEXT, alert_body, alert_json, alerts, loki_body, pushed, webhook_examples

from midwatch.copilot.intake.body import decompress
from midwatch.copilot.intake.labels import fingerprint_of, service_of, severity_of
from midwatch.copilot.intake.source import one_line, parse_time_s
from midwatch.errors import RequestError


def refusal(source: Any, body: bytes, query: dict[str, str] | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        source.parse(body, query or {})
    assert caught.value.what.endswith(".") and caught.value.next_step
    return caught.value


def test_each_alert_of_a_body_is_one_event() -> None:
    first, second = alerts(alert_json("A"), alert_json("B", status="resolved", endsAt="2026-01-02T04:00:00.123456789Z"))
    assert (first.status, second.status) == ("firing", "resolved")
    assert first.title == "A on nginx" and first.service == "nginx" and first.severity == "medium"
    assert first.message == "5xx above 5 %" and first.links == ("http://prometheus.example/graph",)
    assert first.ends_at is None and second.ends_at is not None and first.starts_at == 1767323045.0
    assert json.loads(first.raw)["labels"]["alertname"] == "A"


def test_every_real_alertmanager_body_is_read() -> None:
    for path in webhook_examples("alertmanager"):
        document = json.loads(path.read_bytes())
        events = ALERTMANAGER.parse(path.read_bytes(), {})
        assert len(events) == len(document["alerts"]), path.name
        assert all(event.fingerprint and event.title and event.labels for event in events), path.name
        named = [bool({"service", "job", "host", "instance"} & set(event.labels)) for event in events]
        assert [event.service != "unknown" for event in events] == named, path.name


def test_a_computed_fingerprint_is_the_one_that_alertmanager_gives() -> None:
    labels = {"alertname": "High CPU Temperature", "host": "andromeda", "severity": "critical"}
    assert fingerprint_of(labels) == "a1bc48475b20e73d"
    given_one, computed = alerts(alert_json(fingerprint="a1bc48475b20e73d"), alert_json(labels=labels))
    assert given_one.fingerprint == computed.fingerprint


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"alerts": "\\ud800"}', 400),
        (b"[" * 5000, 400),
        (b"[]", 422),
        (b"null", 422),
        (b"{}", 422),
        (b'{"alerts": []}', 422),
        (b'{"alerts": {}}', 422),
        (b'{"alerts": [1]}', 422),
        (b'{"alerts": [{}]}', 422),
        (b'{"alerts": [{"labels": {"a": {}}}]}', 422),
        (b'{"alerts": [{"labels": {"a": "b"}, "status": "on fire"}]}', 422),
    ],
)
def test_a_wrong_alertmanager_body_is_refused_with_a_next_step(body: bytes, status: int) -> None:
    assert refusal(ALERTMANAGER, body).status == status


def test_a_nonsense_time_does_not_cost_the_alert() -> None:
    (event,) = alerts(alert_json(startsAt="yesterday"))
    assert event.starts_at is None


def test_an_exporter_is_not_the_service_that_is_broken() -> None:
    labels = {
        "service": "prometheus-kube-state-metrics",
        "job": "kube-state-metrics",
        "container": "checkout",
        "pod": "checkout-7d9c5b6f4-x2v9k",
        "instance": "10.0.0.1:8080",
    }
    assert service_of(labels) == "checkout"
    assert service_of({"pod": "checkout-7d9c5b6f4-x2v9k"}) == "checkout"
    assert service_of({"pod": "nginx-proxy"}) == "nginx-proxy"
    assert service_of({"job": "node-exporter", "instance": "db1:9100"}) == "db1"
    assert service_of({"instance": "[::1]:9100"}) == "[::1]"
    assert service_of({"unit": "nginx.service"}) == "nginx"
    assert service_of({"severity": "page"}) == "unknown"


def test_severity_words_of_many_tools_are_understood() -> None:
    words = {"Critical": "critical", "page": "critical", "error": "high", "warning": "medium", "P4": "low"}
    words["none"] = "info"
    assert {word: severity_of(word) for word in words} == words
    assert severity_of("purple") == "medium"


def test_foreign_text_is_one_bounded_line_without_control_characters() -> None:
    assert one_line("a\x1b[31m\nb\u202e\x00c", 20) == "a [31m b c"
    assert one_line("x" * 10_000, 20) == "x" * 19 + "…"


@given(st.text())
def test_any_time_text_is_a_time_or_none(text: str) -> None:
    found = parse_time_s(text)
    assert found is None or found > 0


def test_a_push_is_one_event_per_stream_and_keeps_order_and_times() -> None:
    (event,) = pushed("first", "second\nthird\r")
    assert [line.text for line in event.lines] == ["first", "second", "third"]
    assert event.lines[0].at == pytest.approx(1_700_000_000.0)
    assert event.status == "logs" and event.service == "nginx"


def test_every_real_loki_body_is_read() -> None:
    for path in webhook_examples("loki_push"):
        document = json.loads(path.read_bytes())
        events = LOKI.parse(path.read_bytes(), {})
        wanted = [value[1] for stream in document["streams"] for value in stream["values"]]
        assert [line.text for event in events for line in event.lines] == wanted, path.name


def test_the_same_push_has_the_same_fingerprint_and_another_has_not() -> None:
    assert pushed("a")[0].fingerprint == pushed("a")[0].fingerprint
    assert pushed("a")[0].fingerprint != pushed("b")[0].fingerprint
    assert pushed("a")[0].fingerprint != pushed("a", first_ns=1_700_000_000_000_000_001)[0].fingerprint


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"nope", 400),
        (b"{}", 422),
        (b'{"streams": []}', 422),
        (b'{"streams": [{"stream": {}, "values": []}]}', 422),
        (b'{"streams": [{"stream": {}, "values": [["1", "  "]]}]}', 422),
        (b'{"streams": [{"stream": [], "values": []}]}', 422),
        (b'{"streams": [{"stream": {}, "values": [["now", "x"]]}]}', 422),
        (b'{"streams": [{"stream": {}, "values": [["1"]]}]}', 422),
        (b'{"streams": [{"stream": {}, "values": [["1", 2]]}]}', 422),
    ],
)
def test_a_wrong_push_is_refused_with_a_next_step(body: bytes, status: int) -> None:
    assert refusal(LOKI, body).status == status


def test_protobuf_is_refused_with_the_way_to_json() -> None:
    with pytest.raises(RequestError) as caught:
        LOKI.check_media_type("application/x-protobuf")
    assert caught.value.status == 415 and "JSON" in caught.value.next_step and "Vector" in caught.value.next_step


def test_dirty_text_is_read_and_an_empty_log_is_refused() -> None:
    query = {"service": "web", "title": "It\nbroke", "severity": "page"}
    (event,) = TEXT.parse(b"\xef\xbb\xbfone\r\ntw\xffo\n\n\n", query)
    assert [line.text for line in event.lines] == ["one", "tw\ufffdo"]
    assert (event.service, event.title, event.severity, event.status) == ("web", "It broke", "critical", "firing")
    for empty in (b"", b" \n\t\n"):
        assert refusal(TEXT, empty).status == 422
    with pytest.raises(RequestError):
        TEXT.check_media_type("image/png")


def test_one_line_of_five_megabytes_is_kept_whole() -> None:
    (event,) = TEXT.parse(b"x" * 5_000_000, {})
    assert len(event.lines) == 1 and len(event.lines[0].text) == 5_000_000 and len(event.title) < 300


def test_gzip_is_undone_and_bounded() -> None:
    body = loki_body("a line") * 3
    assert decompress(gzip.compress(body), "gzip", 10_000) == body
    assert decompress(gzip.compress(body[:50]) + gzip.compress(body[50:]), "GZIP", 10_000) == body
    for raw, encoding, status in (
        (gzip.compress(b"\0" * 50_000_000), "gzip", 413),
        (b"not gzip", "gzip", 400),
        (gzip.compress(body)[:-9], "gzip", 400),
        (b"", "br", 415),
    ):
        with pytest.raises(RequestError) as caught:
            decompress(raw, encoding, 10_000)
        assert caught.value.status == status


@given(st.binary(max_size=300))
def test_no_body_makes_a_parser_raise_anything_but_a_refusal(body: bytes) -> None:
    for source in (ALERTMANAGER, LOKI, TEXT):
        try:
            assert source.parse(body, {})
        except RequestError as error:
            assert error.status in {400, 422}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["alerts", "labels", "status", "annotations", "streams", "stream", "values", "a"]), inner
        )
    ),
    max_leaves=12,
)


@given(_JSON, _JSON)
def test_no_json_makes_a_parser_raise_anything_but_a_refusal(one: Any, two: Any) -> None:
    push = {"streams": [{"stream": {"a": one}, "values": [two, ["1", "x", one]]}]}
    for document in (one, {"alerts": [one, two]}, push):
        body = json.dumps(document).encode()
        for source in (ALERTMANAGER, LOKI):
            try:
                assert source.parse(body, {})
            except RequestError as error:
                assert error.status in {400, 422}


def test_a_body_of_many_alerts_names_the_wrong_one() -> None:
    body = alert_body(alert_json(), {**alert_json(), "labels": 7})
    assert "alerts[1].labels" in refusal(ALERTMANAGER, body).what
