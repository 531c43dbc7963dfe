"""Loggers, collectors, and moments in the forms that programs print."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot.parsing import parse
from midwatch.foundry import times
from midwatch.foundry.collectors import COLLECTORS, WEIGHTS, Voice, collector
from midwatch.foundry.shapes import SHAPES, Who, printer

WHO = Who(service="orders-api", program="orders", host="web-prod-03", pid=4711)
LEVELS = ("fatal", "error", "warn", "info", "debug")
moments = st.floats(1.65e9, 1.79e9)
words = st.from_regex(r"[a-z]{3,9}( [a-z]{3,9}){2,5}", fullmatch=True)


@given(shape=st.sampled_from(sorted(SHAPES)), level=st.sampled_from(LEVELS), text=words, at=moments, seed=st.integers())
def test_a_printer_keeps_the_message_in_one_line(shape: str, level: str, text: str, at: float, seed: int) -> None:
    line = printer(shape, WHO, random.Random(seed))(level, text, at)
    assert "\n" not in line
    assert text.rsplit(" ", 1)[1] in line
    if shape != "event":  # an event's first two words are its reason and its object
        assert text in line


@given(
    name=st.sampled_from(sorted(COLLECTORS)), level=st.sampled_from(LEVELS), text=words, at=moments, seed=st.integers()
)
def test_the_copilot_reads_the_message_out_of_every_collector(
    name: str, level: str, text: str, at: float, seed: int
) -> None:
    voice = Voice(
        service="orders-api",
        program="orders",
        host="web-prod-03",
        pod="orders-api-7d4b9c6f5-x2k8p",
        namespace="shop",
        pid=4711,
    )
    line = collector(name, random.Random(seed))(voice, level, text, at)
    assert text in parse(line).message


def test_every_collector_has_a_weight() -> None:
    assert set(WEIGHTS) == set(COLLECTORS)


@pytest.mark.parametrize(
    ("text", "later"),
    [
        ("2026-10-02 13:32:01.123 UTC [12] LOG:", "2026-11-11 13:33:02.623 UTC [12] LOG:"),
        ("[02/Oct/2026:13:32:01 +0000] GET", "[11/Nov/2026:13:33:02 +0000] GET"),
        ("[Fri Oct 02 13:32:01.123456 2026] x", "[Wed Nov 11 13:33:02.623456 2026] x"),
        ("Oct  2 13:32:01 host x[1]:", "Nov 11 13:33:02 host x[1]:"),
        ("I1002 13:32:01.123456 1 x.go:1] m", "I1111 13:33:02.623456 1 x.go:1] m"),
        ('{"time":1790947921123}', '{"time":1794403982623}'),
        ("13:32:01,123 INFO", "13:33:02,623 INFO"),
        ("notAfter=Oct  1 13:32:01 2026 GMT", "notAfter=Nov 10 13:33:02 2026 GMT"),
        ("written 2026-10-01", "written 2026-11-10"),
        ("since 1970-01-01T00:00:00Z and 2011-01-01", "since 1970-01-01T00:00:00Z and 2011-01-01"),
        ("port 5432, 192.168.12.13:51234, id 1790947921x", "port 5432, 192.168.12.13:51234, id 1790947921x"),
    ],
)
def test_moments_move_in_the_form_that_they_are_in(text: str, later: str) -> None:
    assert moved(text, 86_400 * 40 + 61.5) == later


@given(at=moments, days=st.integers(-300, 300), form=st.sampled_from(("iso", "clf", "ctime", "epoch", "day")))
def test_a_moment_moved_and_moved_back_is_the_same(at: float, days: int, form: str) -> None:
    text = f"x {times.forms(at)[form]} y"
    there = moved(text, days * 86_400.0, at)
    assert moved(there, -days * 86_400.0, at + days * 86_400.0) == text


@given(st.text())
def test_any_text_can_be_cut_at_its_moments(text: str) -> None:
    assert moved(text, 0.0) == text or any(letter.isdigit() for letter in text)


def moved(text: str, shift_s: float, said_at: float = 1790947921.123) -> str:
    parts = times.split(text, said_at, lambda kind, old, at: times.written(kind, old, at + shift_s))
    return "".join(parts)
