"""The recorded incidents are whole, consistent, bounded, and say nothing about the machine that recorded them."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from midwatch.copilot import taxonomy

DEMO = Path(__file__).resolve().parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import recordings  # noqa: E402
from recorder.incidents import INCIDENTS  # noqa: E402

NAMES = sorted(INCIDENTS)
PREFIX = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z shop-1 [a-z-]+(\[\d+\])?: .")
PRIVATE = re.compile(r"/root\b|/home/|/tmp/|pyenv|site-packages|\.venv|firecracker|-fc-", re.I)


def folder(name: str) -> Path:
    return recordings.FOLDER / name


def test_there_are_twelve_recordings_and_each_can_be_recorded_again() -> None:
    assert [path.name for path in sorted(recordings.FOLDER.iterdir())] == NAMES
    assert len(NAMES) == 12


def test_every_incident_has_its_own_service_so_that_none_is_grouped_with_another() -> None:
    assert len({recording.service for recording in recordings.load_all()}) == 12


def test_the_ways_of_arrival_cover_alerts_before_and_after_logs_logs_alone_and_text() -> None:
    ways = [recording.delivery for recording in recordings.load_all()]
    assert sum("alertmanager" in way for way in ways) >= 7
    assert {"loki+alertmanager", "alertmanager+loki", "loki", "text"} == set(ways)
    assert ways.count("loki") >= 2


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_is_valid_and_points_at_lines_that_show_the_cause(name: str) -> None:
    truth = tomllib.loads((folder(name) / "truth.toml").read_text())
    lines = (folder(name) / "log.txt").read_text().splitlines()
    incident = INCIDENTS[name]
    assert truth["category"] in taxonomy.CATEGORIES
    assert set(truth["alternatives"]) <= set(taxonomy.CATEGORIES) - {truth["category"]}
    assert truth["severity"] in ("critical", "high", "medium", "low", "info")
    assert truth["lines"] == incident.telling(lines), "the labels are the ones that the recorder would write"
    assert 3 <= len(truth["lines"]) < len(lines) * 0.7
    assert min(truth["lines"]) > 20, "some healthy traffic comes first"
    assert truth["entity"] in "\n".join(lines) or truth["entity"] in truth["title"]
    assert truth["versions"] and truth["broken"] and truth["reasoning"] and truth["recorded_at"].endswith("Z")
    for key in ("name", "service", "delivery", "category", "severity", "entity", "title", "broken", "reasoning"):
        assert truth[key] == getattr(incident, key), f"{key} was changed after the recording; record {name} again"


@pytest.mark.parametrize("name", NAMES)
def test_the_log_is_bounded_in_order_and_in_the_collectors_form(name: str) -> None:
    recording = recordings.load(folder(name))
    assert 60 <= len(recording.lines) <= 500
    assert all(PREFIX.match(line) for line in recording.lines)
    assert all(len(line) < 2100 and line.replace("\t", " ").isprintable() for line in recording.lines)
    assert list(recording.times_ns) == sorted(set(recording.times_ns)), "times rise strictly"
    assert (folder(name) / "log.txt").stat().st_size < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_the_folder_names_the_machine_that_recorded_it(name: str) -> None:
    for path in folder(name).iterdir():
        assert path.name in ("log.txt", "alert.json", "truth.toml")
        assert (found := PRIVATE.search(path.read_text())) is None, f"{path.name}: {found}"


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_there_exactly_when_it_is_delivered_and_is_what_alertmanager_sends(name: str) -> None:
    recording = recordings.load(folder(name))
    if "alertmanager" not in recording.delivery:
        assert recording.alert is None
        return
    body = recording.alert
    assert body is not None
    assert (body["version"], body["status"], body["truncatedAlerts"]) == ("4", "firing", 0)
    (alert,) = body["alerts"]
    assert alert["labels"]["service"] == recording.service == body["groupLabels"]["service"]
    assert alert["fingerprint"] == recordings.fingerprint(alert["labels"])
    started = recordings.time_ns(alert["startsAt"] + " ")
    assert recording.times_ns[0] < started <= recording.times_ns[-1] + 10**9, "the alert fires during the recording"
    telling = json.dumps(alert["annotations"]).lower()
    assert not any(word in telling for word in ("certificate", "password", "too many clients", "oom", "no space"))
