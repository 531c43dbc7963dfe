"""`midwatch foundry`: list, record, make and show, with small programs in place of servers."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from midwatch.cli import cli
from midwatch.errors import FoundryError
from midwatch.foundry import bank, faults, incident, recording
from midwatch.foundry.faults import Fault
from midwatch.foundry.place import Place
from midwatch.foundry.recording import Recording


def prints(place: Place, rng: random.Random) -> Recording:
    number = rng.randint(1, 9999)
    place.run("worker", [sys.executable, "-c", f"print('ERROR out of memory {number}')"])
    lines = place.lines([r"out of memory"])
    return Recording(
        id="",
        program="toy",
        fault="toy_memory",
        kind="fault",
        category="oom_memory",
        names={"worker": "service"},
        lines=lines,
    )


def says_nothing(place: Place, rng: random.Random) -> Recording:
    return Recording(id="", program="toy", fault="toy_silent", kind="fault", category="oom_memory")


def breaks(place: Place, rng: random.Random) -> Recording:
    raise RuntimeError("no such luck")


@pytest.fixture(autouse=True)
def three_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (
        Fault(name="toy_memory", program="toy", category="oom_memory", needs=(), record=prints),
        Fault(name="toy_silent", program="toy", category="oom_memory", needs=(), record=says_nothing),
        Fault(name="odd_broken", program="odd", category="oom_memory", needs=(), record=breaks),
        Fault(name="far_away", program="far", category="oom_memory", needs=("no-such-command",), record=breaks),
    )
    monkeypatch.setattr(faults, "all_faults", lambda: known)
    monkeypatch.setattr(bank, "load", tuple)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["foundry", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_list_shows_what_is_here() -> None:
    code, said = run("list")
    assert code == 0
    rows = {line.split()[0]: line.split()[-1] for line in said.splitlines()[1:]}
    assert rows == {"toy_memory": "yes", "toy_silent": "yes", "odd_broken": "yes", "far_away": "no"}


def test_record_goes_on_after_a_failure_and_says_it(tmp_path: Path) -> None:
    code, said = run("record", "--out", str(tmp_path), "--seeds", "2")
    assert code == 1
    assert "odd_broken seed 0 failed: RuntimeError: no such luck" in said
    assert "toy_silent seed 1 failed: Nothing was printed." in said
    assert "left out far_away: no-such-command not installed" in said
    kept = list(recording.read(tmp_path / "toy.jsonl.gz"))
    assert [item.id for item in kept] == ["toy_memory/0", "toy_memory/1"]
    assert kept[0].lines[0].text != kept[1].lines[0].text


def test_recording_one_fault_again_keeps_the_others(tmp_path: Path) -> None:
    other = Recording(id="toy_other/0", program="toy", fault="toy_other", kind="fault", category="oom_memory")
    recording.write(tmp_path / "toy.jsonl.gz", [other])
    code, _ = run("record", "--out", str(tmp_path), "--fault", "toy_memory", "--seeds", "1")
    assert code == 0
    assert [item.id for item in recording.read(tmp_path / "toy.jsonl.gz")] == ["toy_memory/0", "toy_other/0"]


def test_make_and_show(tmp_path: Path) -> None:
    run("record", "--out", str(tmp_path / "recordings"), "--fault", "toy_memory", "--seeds", "2")
    file = tmp_path / "new" / "incidents.jsonl.gz"
    arguments = ("--seed", "5", "--count", "20", "--part", "train", "--recordings", str(tmp_path / "recordings"))
    code, said = run("make", "--out", str(file), *arguments)
    assert code == 0
    assert "20 incidents in" in said
    made = list(incident.read(file))
    assert len(made) == 20
    known = made[3]
    code, said = run("show", str(file), known.id)
    assert code == 0
    assert known.truth.category in said
    marked = [int(line.split()[1]) for line in said.splitlines() if line.startswith("> ")]
    assert marked == sorted(known.truth.lines)
    assert "\x1b[" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list", "--program", "cobol"), "There is no program cobol."),
        (("record", "--out", "x", "--fault", "nothing"), "There is no fault nothing."),
        (("record", "--out", "x", "--program", "far"), "None of these faults can run here."),
        (("make", "--out", "x.jsonl", "--part", "exam"), "exam is no part."),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FoundryError) as error:
        run(*arguments)
    assert error.value.what == says
    assert error.value.next_step


def test_an_id_that_is_not_there_is_said_with_one_that_is(tmp_path: Path) -> None:
    file, heard = tmp_path / "incidents.jsonl", str(tmp_path / "recordings")
    run("record", "--out", heard, "--fault", "toy_memory", "--seeds", "1")
    run("make", "--out", str(file), "--count", "1", "--seed", "3", "--recordings", heard)
    with pytest.raises(FoundryError, match="Ids are such as 3-00000"):
        run("show", str(file), "4-00000")
