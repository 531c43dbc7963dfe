"""Lines of every common shape give up their level, time, program and message; hostile ones break nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot.parsing import MAX_PARSED_CHARS, clean, clip, clip_around, find_level, parse

SHAPES = [
    ("Jan 15 03:12:44 web1 nginx[123]: hello", "", "web1", "nginx", "hello"),
    ('<165>1 2003-10-11T22:14:15.003Z web1 evntslog 12 ID47 [a b="c"] started', "info", "web1", "evntslog", "started"),
    ("<34>Oct 11 22:14:15 mymachine su: 'su root' failed", "critical", "mymachine", "su", "'su root' failed"),
    (
        "2024-05-01T03:00:00.123456Z shop-1 fx-rates[7]: 2024-05-01 03:00:00,123 ERROR fx: no",
        "error",
        "shop-1",
        "fx-rates",
        "ERROR fx: no",
    ),
    ("2024-01-15 03:12:44,123 WARNING root: slow", "warning", "", "", "WARNING root: slow"),
    ("2024-01-15 03:12:44 UTC [123] FATAL:  no", "critical", "", "", "FATAL:  no"),
    ("[Tue Jun 09 02:15:03 2026] [error] worker child", "error", "", "", "[error] worker child"),
    ("2024/01/15 03:12:44 [error] 31#31: *1 open() failed", "error", "", "", "[error] 31#31: *1 open() failed"),
    ("E0115 03:12:44.123456       1 reflector.go:12] failed to list", "error", "", "reflector.go", "failed to list"),
    (
        '{"level":"error","ts":1.2,"msg":"cannot dial","error":"EOF","service":"pay"}',
        "error",
        "",
        "pay",
        "cannot dial error=EOF",
    ),
    ('{"log":"{\\"level\\":\\"warn\\",\\"msg\\":\\"inner\\"}\\n","stream":"stderr"}', "warning", "", "", "inner"),
    ('time="2024" level=warning msg="retry \\"x\\"" err=EOF', "warning", "", "", 'retry "x" err=EOF'),
    ("2024-01-01T00:00:00.1Z stderr F panic: index", "critical", "", "", "panic: index"),
    ("web-1  | \x1b[31mError\x1b[0m: x", "error", "", "web-1", "Error: x"),
    ("2026-07-29T23:48:08.2790307Z ##[error]Unable", "error", "", "", "##[error]Unable"),
    ("1:M 15 Jan 2024 03:12:44.123 # full", "", "", "", "# full"),
    ("[  123.456789] Out of memory", "", "", "", "Out of memory"),
    ("17/06/09 20:10:48 INFO python.Runner: done", "info", "", "", "INFO python.Runner: done"),
    ("Traceback (most recent call last):", "", "", "", "Traceback (most recent call last):"),
    (
        "- 1117838570 2005.06.03 R02-M1 2005-06-03-15.42.50.363779 R02-M1 RAS KERNEL FATAL data TLB error",
        "critical",
        "R02-M1",
        "",
        "RAS KERNEL FATAL data TLB error",
    ),
    ("081109 203615 148 INFO dfs.DataNode: served", "info", "", "", "INFO dfs.DataNode: served"),
    ("08-15 12:34:56.789  1234  5678 E AndroidRuntime: died", "error", "", "", "AndroidRuntime: died"),
    ("[12:01:02 ERR] Unhandled", "error", "", "", "Unhandled"),
    ("2024-05-01 12:01:02.123 +02:00 [WRN] slow", "warning", "", "", "[WRN] slow"),
    ("fail: Microsoft.AspNetCore.Server.Kestrel[13]", "error", "", "", "fail: Microsoft.AspNetCore.Server.Kestrel[13]"),
    ("2m30s   Warning   BackOff   pod/web-0   Back-off", "warning", "", "", "Warning   BackOff   pod/web-0   Back-off"),
    ("shop   3s   Normal   Pulled   pod/a   pulled", "info", "", "", "Normal   Pulled   pod/a   pulled"),
    ("[pod/web-5d9/web] 2024-01-01T00:00:00Z ERROR no", "error", "web-5d9", "web", "ERROR no"),
    ("web-5d9c web ERROR no", "error", "web-5d9c", "web", "ERROR no"),
    ("shop/web-5d9c: ERROR no", "error", "web-5d9c", "", "ERROR no"),
    ("web-5d9c: 2024-01-01T00:00:00.123456789Z stderr F ERROR no", "error", "web-5d9c", "", "ERROR no"),
    ('2024-01-01T00:00:00Z {app="web", pod="web-0"} no', "", "web-0", "web", "no"),
    ("web| 2024-01-01T00:00:00Z no", "", "", "web", "no"),
    ("2024-01-01T00:00:00.1Z\terror\tserver.go:5\tboom", "error", "", "", "error server.go:5 boom"),
    ('{"level":50,"time":1,"hostname":"a","msg":"boom","err":{"message":"EOF"}}', "error", "a", "", "boom err=EOF"),
    ('{"@t":"2024","@mt":"No {Host}","@l":"Fatal","SourceContext":"Pay"}', "critical", "", "Pay", "No {Host}"),
    (
        '{"MESSAGE":"killed","PRIORITY":"3","SYSLOG_IDENTIFIER":"kernel","_HOSTNAME":"db1"}',
        "error",
        "db1",
        "kernel",
        "killed",
    ),
    (
        '{"t":{"$date":"2024"},"s":"E","c":"NET","msg":"refused","attr":{"error":"EOF"}}',
        "error",
        "",
        "NET",
        "refused attr=EOF",
    ),
    (
        '{"log":"2024-01-01 00:00:00,1 ERROR web: no\\n","stream":"stderr","kubernetes":{"pod_name":"web-0"}}',
        "error",
        "web-0",
        "",
        "ERROR web: no",
    ),
    ("2024-01-01 00:00:00 UTC [9713-4] [unknown]@[unknown] LOG:  ready", "info", "", "", "LOG:  ready"),
    ("2024-03-05 12:00:00.70 [ 20173 ] <Error> Server: full", "error", "", "", "<Error> Server: full"),
    ("[Tue Jun 09 02:15:03.12 2026] [core:error] [pid 12] no", "error", "", "", "[core:error] [pid 12] no"),
    ("[task 2025-02-13T21:24:26.5Z] 21:24:26     INFO - hit", "info", "", "", "INFO - hit"),
    ("2024-01-01T00:00:00.0Z ##[group]Run make", "", "", "", "##[group]Run make"),
    ("    raise ValueError(x)", "", "", "", "raise ValueError(x)"),
    ("^[[31mFAIL^[[0m: test_x", "error", "", "", "FAIL: test_x"),
]


@pytest.mark.parametrize(("line", "level", "host", "program", "message"), SHAPES)
def test_each_common_shape_is_taken_apart(line: str, level: str, host: str, program: str, message: str) -> None:
    parsed = parse(line)
    assert (parsed.level, parsed.host, parsed.program, parsed.message) == (level, host, program, message)


@pytest.mark.parametrize(("status", "level"), [("200", "info"), ("404", "warning"), ("502", "error")])
def test_an_access_log_takes_its_level_from_the_status(status: str, level: str) -> None:
    assert parse(f'10.0.0.1 - - [10/Oct/2000:13:55:36 -0700] "GET /a HTTP/1.1" {status} 157 "-" "curl"').level == level


def test_a_level_word_far_into_a_line_is_not_its_level() -> None:
    assert find_level("x" * 200 + " ERROR") == ""


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser_and_messages_hold_no_control_characters(line: str) -> None:
    message = parse(line).message
    assert not any(ord(letter) < 32 or ord(letter) == 127 for letter in message)


@pytest.mark.parametrize(
    "piece", ["(", "[unknown]@", "a=,", '{"a":', "1m", "web | ", "pod/a ", "<1>", "  ", "a-", '\\"']
)
def test_no_prefix_makes_a_pattern_run_away(piece: str) -> None:
    started = time.process_time()
    for text in (piece * 3_000, f"2024-01-01T00:00:00Z {piece * 3_000}!", f"msg={piece * 3_000}"):
        parse(text)
    assert time.process_time() - started < 0.5


def test_a_long_line_is_cut_around_its_telling_words() -> None:
    text = "started " + "x " * 300 + "No space left on device" + " y" * 300
    cut = clip_around(text, 120, text.index("No space"))
    assert len(cut) <= 120
    assert cut.startswith("started")
    assert "No space left on device" in cut


def test_a_line_of_five_megabytes_is_read_by_its_start_and_its_end() -> None:
    message = parse("ERROR start " + "x" * 5_000_000 + " the end").message
    assert len(message) <= MAX_PARSED_CHARS
    assert message.startswith("ERROR start")
    assert message.endswith("the end")


def test_terminal_colours_titles_and_direction_marks_are_taken_out() -> None:
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07x\u202ey\x00z").split() == ["red", "x", "y", "z"]


@given(st.text(max_size=200), st.integers(min_value=8, max_value=50))
def test_a_clipped_text_is_never_longer_than_asked(text: str, limit: int) -> None:
    assert len(clip(text, limit)) <= limit
    assert clip(text, len(text)) == text
