"""The throw-away place, with real small processes."""

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from midwatch.errors import FoundryError
from midwatch.foundry.place import Place, open_place

SERVER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop"), sys.exit(0)))
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def place():
    with open_place() as here:
        yield here


def python(place: Place, source: str, code: str, **options):
    return place.start(source, [sys.executable, "-c", code], **options)


def texts(place: Place) -> list[str]:
    return [line.text for line in place.lines()]


def test_what_a_program_prints_is_heard_whole_and_in_order_once_it_has_ended(place: Place):
    assert place.run("counter", [sys.executable, "-c", "for n in range(5000): print('line', n)"]) == 0
    assert texts(place) == [f"line {n}" for n in range(5000)]


def test_a_program_that_ends_badly_gives_its_exit_code_and_its_last_words(place: Place):
    code = place.run("broken", [sys.executable, "-c", "raise ValueError('no such rate')"])
    assert code == 1
    assert texts(place)[-1] == "ValueError: no such rate"


def test_a_program_is_killed_when_it_runs_too_long(place: Place):
    code = place.run("slow", [sys.executable, "-c", "import signal; print('began'); signal.pause()"], timeout_s=1.0)
    assert code == -signal.SIGKILL
    assert texts(place) == ["began"]


def test_what_an_ended_program_leaves_running_is_ended_too(place: Place):
    child = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']).pid)"
    )
    place.run("parent", [sys.executable, "-c", child])
    orphan = int(texts(place)[0])
    place.wait_until(lambda: not _runs(orphan), timeout_s=5, what="the end of the child")


def test_stopping_asks_first_and_hears_the_answer(place: Place):
    process = python(place, "server", SERVER)
    place.wait_for("ready", source="server")
    assert place.stop(process) == 0
    assert texts(place) == ["ready", "asked to stop"]


def test_killing_does_not_ask(place: Place):
    process = python(place, "server", SERVER)
    place.wait_for("ready")
    assert place.stop(process, kill=True) == -signal.SIGKILL
    assert texts(place) == ["ready"]


def test_waiting_for_words_that_never_come_says_what_came_instead(place: Place):
    place.note("kernel", "only this")
    with pytest.raises(FoundryError, match=r"'ready' was printed within 0.05 s \(last: only this\)"):
        place.wait_for("ready", timeout_s=0.05)


def test_waiting_can_ask_for_words_of_one_source_after_a_moment(place: Place):
    place.note("a", "ready early")
    moment = place.now
    place.note("b", "ready b")
    place.note("a", "ready late")
    assert place.wait_for("ready", source="a", since=moment) == "ready late"


def test_lines_that_match_after_the_break_show_the_cause_and_hidden_texts_are_swapped(place: Place):
    place.note("app", f"{place.folder}/rates.csv missing, tolerated")
    broke_at = place.now
    place.note("app", "reading rates")
    place.note("app", f"cannot open {place.folder}/rates.csv on port 40123")
    heard = place.lines([r"rates\.csv"], since=broke_at, hide={"40123": "8080"})
    assert [line.truth for line in heard] == [False, False, True]
    assert heard[-1].text == "cannot open /srv/rates.csv on port 8080"
    assert [line.at for line in heard] == sorted(line.at for line in heard)


def test_a_followed_file_is_heard_from_its_beginning_with_its_unfinished_last_line():
    with open_place() as place:
        log = place.write("logs/app.log", "first\n")
        place.follow("app", log)
        place.wait_for("first")
        with log.open("a") as stream:
            stream.write("second\nlast, cut off")
        place.wait_for("second")
    assert texts(place) == ["first", "second", "last, cut off"]


def test_closing_ends_programs_and_removes_the_folder():
    with open_place() as place:
        process = python(place, "server", SERVER)
        place.wait_for("ready")
    assert process.poll() is not None
    assert not place.folder.exists()


def test_a_program_sees_none_of_our_environment_but_what_it_is_given(place: Place, monkeypatch):
    monkeypatch.setenv("MIDWATCH_SECRET", "s3cret")
    code = "import os; print(os.environ.get('MIDWATCH_SECRET'), os.environ['REGION'], os.environ['TZ'])"
    place.run("app", [sys.executable, "-c", code], env={"REGION": "eu-west-1"})
    assert texts(place) == ["None eu-west-1 UTC"]


def test_a_program_that_is_not_installed_is_named(place: Place):
    with pytest.raises(FoundryError, match="no-such-daemon is not installed"):
        place.start("x", ["no-such-daemon"])


def test_a_free_port_can_be_listened_on(place: Place):
    with socket.create_server(("127.0.0.1", place.free_port())) as server:
        assert server.getsockname()[1] > 0


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
