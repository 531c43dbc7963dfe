"""Stores and brokers, broken for real where they are installed, and what the repository carries of them."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from midwatch.copilot.taxonomy import CATEGORIES
from midwatch.foundry import recording, relay
from midwatch.foundry.faults import Fault, all_faults
from midwatch.foundry.place import open_place
from midwatch.foundry.recording import Recording
from midwatch.foundry.stage import MAX_LINES, cast

FAMILIES = ("postgresql", "redis", "mariadb", "memcached", "rabbitmq", "mosquitto", "nats", "etcd")
QUICK = ("redis_not_authorised", "mosquitto_topic_denied")
CARRIED = Path(recording.__file__).parent / "recordings"
OF_THIS_MACHINE = re.compile(r"/tmp/|/root/|/work/|foundry-\w{8}|\.pyenv|127\.0\.0\.1|@vm\b|-fc-v\d|sandbox")


def carried(family: str) -> list[Recording]:
    return list(recording.read(CARRIED / f"{family}.jsonl.gz"))


def fault_named(name: str) -> Fault:
    return next(fault for fault in all_faults() if fault.name == name)


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_made_for_real_and_shows_its_cause(name: str) -> None:
    fault = fault_named(name)
    missing = [program for program in fault.needs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    with open_place() as place:
        made = fault.record(place, random.Random(5))
    assert made.category == fault.category
    assert any(line.truth for line in made.lines)
    assert made.broke_at is not None
    assert all(line.at >= made.broke_at for line in made.lines if line.truth)
    assert not any(OF_THIS_MACHINE.search(line.text) for line in made.lines)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fault_of_a_family_is_carried_more_than_once(family: str) -> None:
    made = [entry.fault for entry in carried(family)]
    names = [fault.name for fault in all_faults() if fault.program == family]
    assert names
    assert {name: made.count(name) >= 3 for name in names} == dict.fromkeys(names, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_carried_faults_show_their_cause_and_healthy_ones_show_none(family: str) -> None:
    for entry in carried(family):
        true = [line for line in entry.lines if line.truth]
        assert bool(true) == (entry.kind != "healthy"), entry.id
        assert entry.category in CATEGORIES
        assert set(entry.accepted) <= set(CATEGORIES)
        assert entry.program == family
        assert entry.cause
        assert 1 <= len(entry.lines) <= MAX_LINES
        if entry.kind == "fault":
            assert len(true) < len(entry.lines), entry.id
            assert entry.entity, entry.id


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_entities_of_carried_recordings_stand_in_their_lines(family: str) -> None:
    for entry in carried(family):
        everything = "\n".join(f"{line.source} {line.text}" for line in entry.lines)
        for name in (*entry.names, entry.entity):
            assert name in everything, (entry.id, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_carried_recordings_tell_nothing_of_the_machine_that_made_them(family: str) -> None:
    for entry in carried(family):
        for line in entry.lines:
            assert not OF_THIS_MACHINE.search(line.text), (entry.id, line.text)


def test_every_fault_has_its_own_name_and_a_category_of_the_taxonomy() -> None:
    faults = [fault for fault in all_faults() if fault.program in FAMILIES]
    assert len({fault.name for fault in faults}) == len(faults)
    assert {fault.category for fault in faults} <= set(CATEGORIES)


def test_names_of_a_cast_are_never_part_of_one_another() -> None:
    for seed in range(200):
        names = [name for key, name in vars(cast(random.Random(seed))).items() if key != "version"]
        assert len(set(names)) == len(names)
        assert not any(one != other and one in other for one in names for other in names), names


def test_a_relay_passes_bytes_on_until_it_is_cut() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as far, relay.Relay("127.0.0.1", far.getsockname()[1]) as wire:
        near = socket.create_connection(("127.0.0.1", wire.port), timeout=5)
        end, _ = far.accept()
        near.sendall(b"hello")
        assert end.recv(16) == b"hello"
        wire.cut()
        near.settimeout(5)
        assert near.recv(16) == b""
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", wire.port), timeout=5)
        near.close()
        end.close()
