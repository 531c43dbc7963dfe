#!/usr/bin/env python3
"""Record the demo's incidents anew: real programs, broken on purpose, in a throw-away house that leaves nothing behind.

    python demo/record.py --list
    python demo/record.py NAME... | --all

Writes demo/incidents/NAME/{log.txt,alert.json,truth.toml}. Needs Linux and, for most, root (see demo/README.md).
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recorder import alerts, house
from recorder.incident import Incident, RecordError, truth_toml
from recorder.incidents import INCIDENTS
from recorder.stage import Stage

FOLDER = Path(__file__).resolve().parent / "incidents"


def inside(incident: Incident, *, with_alert: bool) -> dict[str, Any]:
    """Record in this house and give {log, alert, truth}."""
    house.furnish()
    with Stage() as stage:
        incident.run(stage)
        collected = stage.lines()
        alert = alerts.webhook_body(stage, incident, incident.alert) if incident.alert and with_alert else None
    lines = [line.line() for line in collected]
    release, neutral = house.neutral_release()
    dumped = release != neutral and any("Not tainted" in line for line in lines)
    facts = {
        "host": house.HOST,
        "recorded_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "replaced": [f"kernel release by {neutral}"] if dumped else [],
        "versions": stage.versions,
    }
    truth = truth_toml(incident, lines=incident.telling(lines), facts=facts)
    return {"log": "\n".join(lines) + "\n", "alert": alert, "truth": truth}


def private_words() -> list[str]:
    """What must not be in a recording: this machine's name, its user, its home and the folder of this clone."""
    words = [socket.gethostname(), getpass.getuser(), str(Path.home()), str(FOLDER.parent.parent), os.uname().release]
    ordinary = ("root", "/root", "localhost", "postgres", "nobody", house.HOST)
    return [word for word in words if len(word) > 2 and word not in ordinary]


def record(incident: Incident, *, with_alert: bool = True) -> dict[str, Any]:
    """Record one incident in a new house. Raises `RecordError`; on any way out nothing is left running or mounted."""
    house.check(incident, with_alert=with_alert)
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", incident.name]
    arguments = house.unshare(command if with_alert else [*command, "--no-alert"])
    # The pipe to the house stays open while we live: when it closes, the house ends itself.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            output = process.stdout.read()
            if process.wait() != 0:
                errors.seek(0)
                said = errors.read().strip().removeprefix("record: ")
                raise RecordError(said or f"{incident.name}: the house ended with code {process.returncode}.")
        finally:
            process.kill()
            process.wait()
            if incident.root:
                house.remove_cgroup()
    recording: dict[str, Any] = json.loads(output)
    for word in private_words():
        if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", json.dumps(recording)):
            raise RecordError(f"{incident.name}: the recording names this machine ({word!r}); it was not written.")
    return recording


def write(incident: Incident, recording: dict[str, Any]) -> None:
    """Write the folder of an incident."""
    folder = FOLDER / incident.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(recording["log"], encoding="utf-8")
    (folder / "truth.toml").write_text(recording["truth"], encoding="utf-8")
    if recording["alert"] is not None:
        (folder / "alert.json").write_text(json.dumps(recording["alert"], indent=2) + "\n", encoding="utf-8")


def _end_with_parent() -> None:
    """End this house, and with it all its processes, when the recorder outside is gone."""
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Record the demo's incidents anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="incidents to record")
    parser.add_argument("--all", action="store_true", help="record every incident")
    parser.add_argument("--list", action="store_true", help="list the incidents and what each needs")
    parser.add_argument("--inside", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--no-alert", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.list:
        for incident in INCIDENTS.values():
            needs = ", ".join((*incident.needs, *(("prometheus-alertmanager",) if incident.alert else ()))) or "python3"
            print(f"{incident.name:22} {incident.category:22} needs {'root, ' if incident.root else ''}{needs}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = [asked.inside] if asked.inside else list(INCIDENTS) if asked.all else asked.names
    unknown = [name for name in names if name not in INCIDENTS]
    if unknown or not names:
        what = f"unknown incident {unknown[0]}" if unknown else "name an incident"
        parser.error(f"{what}; one of {', '.join(INCIDENTS)}")
    try:
        if asked.inside:
            threading.Thread(target=_end_with_parent, daemon=True).start()
            json.dump(inside(INCIDENTS[asked.inside], with_alert=not asked.no_alert), sys.stdout)
            return 0
        for name in names:
            print(f"{name}: recording", file=sys.stderr, flush=True)
            recording = record(INCIDENTS[name])
            write(INCIDENTS[name], recording)
            print(f"{name}: {recording['log'].count(chr(10))} lines", file=sys.stderr, flush=True)
    except RecordError as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("record: stopped; nothing is left running", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
