"""Web servers, runtimes and build tools, broken for real where they are installed, and what is carried of them."""

from __future__ import annotations

import random
import re
import shutil
import socket
from pathlib import Path

import pytest

from midwatch.copilot.taxonomy import CATEGORIES
from midwatch.errors import FoundryError
from midwatch.foundry import recording
from midwatch.foundry.faults import Fault, all_faults
from midwatch.foundry.names import Cast
from midwatch.foundry.place import Place, open_place
from midwatch.foundry.props import Traffic, ask, certificate, deaf_port, dependency, limited
from midwatch.foundry.recording import RecordedLine, Recording
from midwatch.foundry.services.kit import Kit
from midwatch.foundry.services.service import render, trimmed
from midwatch.foundry.services.supervisor import STYLES, Supervisor
from midwatch.foundry.workshop import Change, workshop

SERVICES = ("python", "node", "java")
SERVERS = ("nginx", "haproxy")
BUILDS = ("pytest", "pip", "ruff", "mypy", "bash", "make", "javac", "npm")
FAMILIES = (*SERVICES, *SERVERS, *BUILDS)
QUICK = (
    "python-unhandled",
    "python-poison-message",
    "python-volume",
    "node-bad-setting",
    "node-oom",
    "nginx_config_refused",
    "haproxy_config_refused",
    "make_compiler_error",
    "make_failing_check",
    "javac_compiler_error",
    "npm_missing_script",
    "pytest_test_failure",
    "pip_unknown_package",
    "bash_missing_tool",
)
CARRIED = Path(recording.__file__).parent / "recordings"
OF_THIS_MACHINE = re.compile(
    r"/tmp/foundry|/root/|/work/main|foundry-\w{8}|\.pyenv|127\.0\.0\.1|@vm\b|-fc-v\d|midwatch"
)
NEEDS_ROOT = ("unshare", "dmesg")


def carried(family: str) -> list[Recording]:
    return list(recording.read(CARRIED / f"{family}.jsonl.gz"))


def faults_of(family: str) -> list[Fault]:
    return [fault for fault in all_faults() if fault.program == family]


@pytest.fixture
def place():
    with open_place() as here:
        yield here


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_made_for_real_and_shows_its_cause(name: str, place: Place) -> None:
    fault = next(one for one in all_faults() if one.name == name)
    missing = [program for program in fault.needs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    if set(fault.needs) & set(NEEDS_ROOT) and not can_mount():
        pytest.skip("mounting needs root")
    made = fault.record(place, random.Random(7))
    assert (made.category, made.program, made.kind) == (fault.category, fault.program, "fault")
    assert any(line.truth for line in made.lines)
    assert made.broke_at is not None
    assert all(line.at >= made.broke_at for line in made.lines if line.truth)
    assert not any(OF_THIS_MACHINE.search(line.text) for line in made.lines)


def can_mount() -> bool:
    with open_place() as here:
        return here.run("mount", ["unshare", "-m", "true"]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fault_of_a_family_is_carried_and_nothing_else(family: str) -> None:
    made = [entry.fault for entry in carried(family)]
    names = {fault.name for fault in faults_of(family)}
    assert names and set(made) == names
    assert all(made.count(name) >= 2 for name in names), {name: made.count(name) for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_carried_faults_show_their_cause_and_healthy_ones_show_none(family: str) -> None:
    for entry in carried(family):
        true = [line for line in entry.lines if line.truth]
        assert bool(true) == (entry.kind != "healthy"), entry.id
        if entry.kind == "healthy":
            assert (entry.category, entry.broke_at, entry.mended_at) == ("", None, None)
        else:
            assert {entry.category, *entry.accepted} <= CATEGORIES.keys(), entry.id
            assert entry.category not in entry.accepted
            assert entry.broke_at is not None and entry.cause
            assert all(line.at >= entry.broke_at - 0.001 for line in true), entry.id


@pytest.mark.parametrize("family", FAMILIES)
def test_carried_lines_are_in_order_and_tell_nothing_of_this_machine(family: str) -> None:
    for entry in carried(family):
        times = [line.at for line in entry.lines]
        assert times == sorted(times), entry.id
        assert 1 <= len(times) <= 300, entry.id
        wrong = [line.text for line in entry.lines if OF_THIS_MACHINE.search(line.text)]
        assert not wrong, (entry.id, wrong[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_entities_of_carried_recordings_are_printed_and_can_be_renamed(family: str) -> None:
    for entry in carried(family):
        printed = "\n".join(f"{line.source} {line.text}" for line in entry.lines)
        assert all(name in printed for name in (entry.entity, *entry.names)), entry.id
        Cast(random.Random(1)).rename(entry.names)


@pytest.mark.parametrize("family", FAMILIES)
def test_carried_recordings_are_small(family: str) -> None:
    assert (CARRIED / f"{family}.jsonl.gz").stat().st_size < 200_000


def test_a_symptom_alone_is_not_marked_as_the_cause() -> None:
    access = re.compile(r'"(GET|POST) /\S* HTTP/1\.1" 50\d|-> 50\d in|POST /\w+s 50\d')
    for family in SERVICES:
        for entry in carried(family):
            assert not any(line.truth and access.search(line.text) for line in entry.lines), entry.id


def test_the_same_trouble_is_worded_in_many_ways() -> None:
    wordings = {
        re.sub(r"[\d.]+", "#", line.text.split(entry.entity)[-1])[:60]
        for entry in carried("python")
        if entry.fault == "python-pool"
        for line in entry.lines
        if line.truth
    }
    assert len(wordings) >= 3


def test_the_held_out_family_shares_no_wording_of_ours_with_those_trained_on() -> None:
    import tomllib

    from midwatch.foundry.services.service import APPS, TRADES

    spoken = tomllib.loads((APPS / "phrases.toml").read_text())
    assert spoken["node"].keys() == spoken["common"].keys()
    assert not any(set(spoken["node"][key]) & set(spoken["common"][key]) for key in spoken["node"])
    from midwatch.foundry.faults import node

    assert not {word for trade in node.TRADES for word in trade} & {word for trade in TRADES for word in trade}


@pytest.mark.parametrize("family", SERVICES)
def test_a_release_changes_text_that_the_sources_have(family: str) -> None:
    import importlib

    from midwatch.foundry.services.service import APPS

    kit: Kit = importlib.import_module(f"midwatch.foundry.faults.{family}").KIT
    for release in kit.releases:
        assert release.before in (APPS / family / f"{release.file}.in").read_text(), release


def test_words_are_swapped_whole_in_every_case_and_nowhere_else() -> None:
    text = "order orders order_id orderId Orders createOrder ORDER_URL border reorder ORDER BY ordered"
    expected = "clip clips clip_id clipId Clips createClip CLIP_URL border reorder ORDER BY ordered"
    assert render(text, {"order": "clip"}) == expected


def test_a_long_recording_keeps_its_beginning_and_what_leads_to_the_first_telling_line() -> None:
    lines = tuple(RecordedLine(at=5.0 + at, source="a", text=str(at), truth=at == 400) for at in range(500))
    kept = trimmed(lines, 100)
    assert len(kept) == 100
    assert [line.text for line in kept[:3]] == ["0", "1", "2"]
    assert kept[0].at == 0.0
    assert [line.text for line in kept if line.truth] == ["400"]


@pytest.mark.parametrize(
    ("manner", "answer"), [("ok", 200), ("status", 503), ("reset", 0), ("close", 0), ("garbage", 0)]
)
def test_a_dependency_answers_in_the_manner_it_is_told(manner: str, answer: int) -> None:
    with dependency() as served:
        served.manner, served.status, served.reason = manner, 503, "Service Unavailable"  # type: ignore[assignment]
        assert ask(served.port, "/") == answer
        assert served.asked == 1


def test_a_dependency_that_misbehaves_now_and_then_answers_the_others_well() -> None:
    with dependency() as served:
        served.manner, served.status, served.every = "status", 500, 3
        assert [ask(served.port, "/") for _ in range(6)] == [200, 200, 500, 200, 200, 500]


def test_connections_end_when_their_dependency_is_gone() -> None:
    with dependency() as served, socket.create_connection(("127.0.0.1", served.port), 2) as link:
        link.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert link.recv(4) == b"HTTP"
        port = served.port
        link.settimeout(3)
        served.hang_up()
        while link.recv(4096):
            pass
    assert ask(port, "/") == 0


def test_connecting_to_a_deaf_port_times_out() -> None:
    with deaf_port() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), 0.3)


def test_traffic_counts_the_answers_it_got() -> None:
    with dependency() as served:
        answers = Traffic(port=served.port, calls=[("GET", "/", "")], rate=100).send(random.Random(1), 0.3)
    assert answers[200] == served.asked > 3


@pytest.mark.parametrize("days", [-3, 30])
def test_a_certificate_is_made_for_its_time(place: Place, days: int) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    issuer = certificate(place.folder, "authority")
    made = certificate(place.folder, "shop.example.com", days=days, issuer=issuer)
    check = ["openssl", "x509", "-in", str(made.cert), "-noout", "-checkend", "0", "-issuer"]
    assert (place.run("openssl", check) == 0) == (days > 0)
    assert any("authority" in line.text for line in place.lines())


def test_a_limited_command_runs_under_its_limit(place: Place) -> None:
    place.run("shell", limited(["sh", "-c", "ulimit -n"], n=33))
    assert [line.text for line in place.lines()] == ["33"]


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_supervisor_starts_again_what_ends_badly_and_says_so(place: Place, style: str) -> None:
    starts = []

    def start():
        starts.append(1)
        return place.start("web", ["sh", "-c", "echo up; exit 3"])

    Supervisor(place=place, rng=random.Random(4), name="web", style=style, start=start).crash_loop(3)
    said = [line.text for line in place.lines() if line.source != "web"]
    assert len(starts) == 3
    assert sum("3" in text and "web" in text for text in said) >= 3


def test_a_supervisor_restarts_what_fails_its_probes(place: Place) -> None:
    with dependency() as served:
        served.manner, served.status = "status", 404
        process = place.start("web", ["sleep", "30"])
        watcher = Supervisor(place=place, rng=random.Random(4), name="web", style="keeper", start=lambda: process)
        assert watcher.probing(process, "no answer", port=served.port, pause_s=0.01)
        assert process.poll() is not None
        served.manner = "ok"
        assert not watcher.probing(process, "no answer", port=served.port)
    assert sum("statuscode: 404" in line.text for line in place.lines()) == 3


def test_a_change_that_no_longer_fits_a_project_is_an_error(place: Place) -> None:
    made = workshop(place, random.Random(1), "c")
    with pytest.raises(FoundryError, match="has no 'long sum = 0;'"):
        made.change(Change(file="src/pricing.c", before="long sum = 0;", after="", error=""))
