"""Lines of every common shape give up their level, time, program and message; hostile ones break nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot.parsing import MAX_PARSED_CHARS, clean, clip, find_level, parse

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
