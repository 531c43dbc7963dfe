"""The recorder breaks real programs again, finds the telling lines again, and leaves nothing behind."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import record  # noqa: E402
from recorder import house  # noqa: E402
from recorder.incident import RecordError  # noqa: E402
from recorder.incidents import INCIDENTS  # noqa: E402

needs_a_house = pytest.mark.skipif(
    not house.available(), reason="needs Linux namespaces: root, or user namespaces that are allowed"
)


def test_the_list_names_every_incident_and_what_it_needs() -> None:
    done = subprocess.run([sys.executable, DEMO / "record.py", "--list"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(INCIDENTS)
    assert "needs root, postgres, psql" in done.stdout


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    done = subprocess.run([sys.executable, DEMO / "record.py", "meteor"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown incident meteor" in done.stderr and "dns-failure" in done.stderr


def test_every_program_that_an_incident_needs_has_a_debian_package() -> None:
    assert {program for incident in INCIDENTS.values() for program in incident.needs} <= set(house.PACKAGES)


def test_a_missing_program_is_answered_with_its_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(house.PACKAGES, "no-such-program", "no-such-package")
    with pytest.raises(RecordError, match="apt-get install no-such-package"):
        house.find("no-such-program")


def test_a_fault_that_does_not_show_is_not_labelled() -> None:
    with pytest.raises(RecordError, match="the fault did not show"):
        INCIDENTS["dns-failure"].telling(["all is well"])


@needs_a_house
def test_cheap_incidents_recorded_again_side_by_side_show_their_causes_again() -> None:
    cheap = [INCIDENTS["crash-stack-trace"]]
    if shutil.which("curl") is not None:  # the other one breaks the resolver under curl
        cheap.append(INCIDENTS["dns-failure"])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        recordings = list(pool.map(lambda incident: record.record(incident, with_alert=False), cheap))
    for incident, recording in zip(cheap, recordings, strict=True):
        lines = recording["log"].splitlines()
        told = incident.telling(lines)
        assert told and told[0] > 20
        assert f"lines = {told}" in recording["truth"]
        assert not any(str(DEMO.parent) in line for line in lines)


@needs_a_house
def test_a_recorder_that_is_killed_leaves_no_process_behind() -> None:
    code = "import record; record.record(record.INCIDENTS['crash-stack-trace'])"
    recorder = subprocess.Popen([sys.executable, "-c", code], cwd=DEMO, env=os.environ | {"PYTHONPATH": str(DEMO)})
    wait_until(lambda: "quote_api.py" in commands_below(recorder.pid), "the service runs")
    below = tree(recorder.pid)
    recorder.send_signal(signal.SIGKILL)
    recorder.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "every process of the house has ended")


def tree(root: int) -> set[int]:
    """Process ids of all descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: set[int] = set()
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def commands_below(root: int) -> str:
    """Command lines of all descendants, in one text."""
    said = []
    for pid in tree(root):
        try:
            said.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return "\n".join(said)


def wait_until(condition: object, what: str, *, timeout_s: float = 30) -> None:
    """Poll a condition to its deadline."""
    import threading
    import time

    assert callable(condition)
    deadline, pace = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        pace.wait(0.1)
