"""A runbook is cut where people divided it, loses no text, and gives the steps that it lists."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.copilot import runbooks
from midwatch.copilot.runbooks import MAX_SECTION_CHARS, read_runbooks, split, steps
from midwatch.errors import RequestError

DISK = """---
title: "Disk is full"
---
# DiskFull

Comes before any heading.

## Meaning

A volume has less than 3 % left. See [the guide](https://example.com/guide).

## Mitigation

### Logs

1. Rotate them: `journalctl --vacuum-size=500M`.
2. Restart the writer.

```shell
# not a heading
$ df -h
Filesystem  Size
```
"""


def test_sections_stand_under_the_path_of_their_headings() -> None:
    title, sections = split(DISK)
    assert title == "DiskFull"
    assert [item.heading for item in sections] == ["", "Meaning", "Mitigation > Logs"]
    assert sections[0].text == "Comes before any heading."


def test_front_matter_names_a_runbook_without_a_heading_of_the_first_level() -> None:
    title, sections = split("---\ntitle: Slow queries\n---\n## What to do\nLook at locks.\n")
    assert (title, [item.heading for item in sections]) == ("Slow queries", ["What to do"])


def test_a_hash_in_a_block_of_code_is_no_heading() -> None:
    _, sections = split(DISK)
    assert "# not a heading" in sections[2].text


def test_steps_are_list_items_and_commands() -> None:
    _, sections = split(DISK)
    assert steps(sections[2].text) == (
        "Rotate them: journalctl --vacuum-size=500M.",
        "Restart the writer.",
        "`df -h`",
    )


def test_the_first_line_of_a_shell_block_without_prompts_is_a_command() -> None:
    assert steps("Look:\n```bash\nkubectl get pods\nNAME READY\n```\n") == ("`kubectl get pods`",)
    assert steps("Look:\n```json\n{}\n```\n") == ("Look:",)


def test_a_section_without_a_list_gives_its_first_sentence() -> None:
    assert steps("Grow the [volume](http://x). Then wait.") == ("Grow the volume.",)


def test_a_long_section_is_cut_at_blank_lines() -> None:
    paragraphs = [f"Paragraph {number}. " + "word " * 100 for number in range(10)]
    _, sections = split("# T\n\n## S\n\n" + "\n\n".join(paragraphs))
    assert len(sections) > 1
    assert all(len(item.text) <= MAX_SECTION_CHARS + 2 for item in sections)
    assert {item.heading for item in sections} == {"S"}
    assert all(item.text.startswith("Paragraph") for item in sections)


@given(st.lists(st.sampled_from(["# a", "## b", "text one", "", "- item", "```", "    code", "> quote"]), max_size=30))
def test_no_line_of_text_is_lost(lines: list[str]) -> None:
    title, sections = split("\n".join(lines))
    kept = "\n".join([title, *(f"{item.heading}\n{item.text}" for item in sections)])
    for word in ("one", "item", "code", "quote"):
        assert sum(word in line for line in lines) == kept.count(word)


@given(st.text(max_size=400))
def test_any_text_can_be_split(text: str) -> None:
    _, sections = split(text)
    assert all(item.text.strip() for item in sections)
    assert all(isinstance(steps(item.text), tuple) for item in sections)


def test_a_folder_gives_every_text_below_it_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "db" / ".hidden").mkdir(parents=True)
    (tmp_path / "db" / "disk.md").write_text(DISK)
    (tmp_path / "db" / ".hidden" / "x.md").write_text("hidden")
    (tmp_path / "plain.txt").write_text("Call the owner.")
    (tmp_path / "plain.md").write_text("Call the owner of it.")
    (tmp_path / "empty.md").write_text("\n\n")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG")
    found = read_runbooks(tmp_path, base_url="https://wiki.example/books/")
    assert [(item.name, item.title, item.url) for item in found] == [
        ("db/disk", "DiskFull", "https://wiki.example/books/db/disk.md"),
        ("plain", "plain", "https://wiki.example/books/plain.md"),
        ("plain.txt", "plain", "https://wiki.example/books/plain.txt"),
    ]


def test_what_holds_no_runbook_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no file or folder"):
        read_runbooks(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="holds no runbook"):
        read_runbooks(tmp_path)
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(RequestError, match="no link"):
        read_runbooks(tmp_path, base_url="javascript:alert(1)")
    monkeypatch.setattr(runbooks, "MAX_FILE_BYTES", 3)
    with pytest.raises(RequestError, match="larger than 3 bytes"):
        read_runbooks(tmp_path)


def shared_runbooks() -> Path:
    """The public runbooks; a skip with the reason where they are not."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("MIDWATCH_DATA", default)) / "runbooks"
    if not (folder / "index.json").is_file():
        pytest.skip(f"no public runbooks at {folder}; set MIDWATCH_DATA to the folder that holds runbooks/")
    return folder


def test_public_runbooks_of_five_projects_are_read() -> None:
    folder = shared_runbooks()
    index = json.loads((folder / "index.json").read_text())
    found = {item.name: item for item in read_runbooks(folder)}
    alerts = [item for item in index if item.get("alert")]
    assert {str(Path(item["path"]).with_suffix("")) for item in index} <= set(found)
    about = [found[str(Path(item["path"]).with_suffix(""))] for item in alerts]
    telling = [book for book in about if any("Mitigation" in item.heading for item in book.sections)]
    assert len(telling) > 0.8 * len(about)
