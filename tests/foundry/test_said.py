"""Who speaks in an incident, and how messages of the bank become lines."""

from __future__ import annotations

import random

import material
import pytest

from midwatch.foundry import ci
from midwatch.foundry.collectors import Voice
from midwatch.foundry.names import Cast, Printing
from midwatch.foundry.said import Said, Speech, Stage, messages
from midwatch.foundry.stories import tell


def stage(seed: int = 1, collector: str = "raw") -> Stage:
    source = random.Random(seed)
    return Stage(source=source, cast=Cast(source), collector=collector)


def said_by(shape: str, texts: list[str], collector: str = "raw") -> list[str]:
    place = stage(collector=collector)
    speech = Speech(place, place.voice("x", "java"), shape)
    printing = Printing(place.cast, place.source)
    lines = speech.say(texts, 1.7e9, role="truth", level="error", printing=printing)
    return [line.say(line.at) for line in lines]


def test_a_product_has_its_own_name_and_a_service_that_of_a_team() -> None:
    place = stage()
    assert "redis" in place.voice("a", "redis").service
    assert place.voice("a", "redis").program == "redis-server"
    assert not place.voice("a", "redis").own
    assert place.voice("b", "kubernetes").service == "kubelet"
    own = place.voice("c", "python")
    assert own.own
    assert own.service == own.program != "python"
    assert place.voice("d", "orders-old", service="orders-new").program == "orders-new"


def test_a_trace_is_one_message() -> None:
    texts = ["@error boom", "Caused by: java.io.IOException", "\tat a.B.c(B.java:1)", "@more ... 3 more", "@info next"]
    assert [len(group) for group in messages(texts)] == [4, 1]


def test_a_trace_is_one_line_where_lines_are_objects_and_bare_lines_elsewhere() -> None:
    texts = ["boom", "  at x", "  at y"]
    assert len(said_by("json", texts)) == 1
    assert "\\n  at x" in said_by("json", texts)[0]
    assert said_by("java", texts)[1:] == ["  at x", "  at y"]


def test_a_program_does_not_repeat_what_the_collector_writes() -> None:
    assert "java[" not in said_by("syslog", ["boom"], collector="journal")[0]
    assert said_by("syslog", ["boom"], collector="journal") == ["boom"]
    assert said_by("syslog", ["boom"], collector="compose")[0].endswith(": boom")


def test_details_of_postgresql_have_their_prefix() -> None:
    lines = said_by("postgres", ["deadlock detected", "@more DETAIL:  Process 1 waits"])
    assert lines[0].endswith("ERROR:  deadlock detected")
    assert lines[1].endswith("DETAIL:  Process 1 waits")
    assert lines[1].startswith("2023-11-14")


def test_klog_names_one_file() -> None:
    (line,) = said_by("klog", ["reflector.go:147] failed"])
    assert line.count(".go:") == 1


@pytest.mark.parametrize("seed", range(12))
def test_a_job_is_told_in_order_by_one_writer(seed: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    entries = {entry.program: entry for entry in material.bank_of(tmp_path) if entry.category == "ci_test_failure"}
    place = stage(seed)
    story = tell(entries["pytest"], place, 1.7e9, limit=20, lasts_s=30)
    lines, collect = ci.job(story, place, [], 60, "train")
    moments = [line.at for line in lines]
    assert moments == sorted(moments)
    assert len({id(line.voice) for line in lines}) == 1
    telling = [written(collect, line) for line in lines if line.role == "truth"]
    assert telling
    assert all("TELLING FAILED" in text for text in telling)
    assert not any("Finished: FAILURE" in written(collect, line) for line in lines)  # Jenkins is no part of training


def written(collect, line: Said) -> str:  # type: ignore[no-untyped-def]
    assert isinstance(line.voice, Voice)
    return str(collect(line.voice, line.level, line.say(line.at), line.at))


def test_a_method_and_a_path_are_those_of_http_before_a_url() -> None:
    printing = Printing(Cast(random.Random(1)), random.Random(1))
    assert printing.fill('"{method} /x"', 0.0)[1:].split()[0] in ("GET", "POST", "PUT", "DELETE")
    assert printing.fill("GET {path} 500", 0.0).split()[1].count("/") <= 3
    assert not printing.fill("open {path}", 0.0).split()[1].startswith("/api")


def test_names_are_the_same_wherever_they_stand_and_never_shared() -> None:
    cast = Cast(random.Random(3))
    names = [cast.name("service", f"service{number}") for number in ("", 2, 3, 4, 5)]
    assert cast.name("service") == names[0]
    assert len(set(names)) == 5
    assert cast.name("pod").startswith(names[0])
    assert names[0] in cast.aliases_of(cast.name("pod"))
