"""A runbook: a text that people wrote for the next time, read from Markdown and cut into sections.

A section is what stands below one heading, at most `MAX_SECTION_CHARS` long (a longer one is cut at blank lines), so
that a search finds the paragraph and not the book.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from midwatch.errors import RequestError

SUFFIXES = (".md", ".markdown", ".txt")
MAX_FILE_BYTES = 1_000_000
MAX_SECTION_CHARS = 1_500
"""About the 256 tokens that the sentence encoder reads."""
MAX_STEP_CHARS = 200

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]\n]{0,300})\]\([^)\n]{0,1000}\)")
_ITEM = re.compile(r"^\s{0,6}(?:[-*+]|\d{1,2}[.)])\s+(.*)$")
_PROMPT = re.compile(r"^\s*\$\s+")
_FENCE = re.compile(r"^\s*(?:```+|~~~+)\s*(\w*)")
_SHELLS = {"sh", "shell", "bash", "zsh", "console"}


@dataclass(frozen=True, kw_only=True)
class Section:
    """What stands below one heading. `heading` is the path of headings to it, without the runbook's title."""

    heading: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Runbook:
    """A runbook. `name` is its path below the folder it was added from, without `.md`; no two have the same.

    `url` is where people read it ("" if it is only here); `digest` says whether a file has changed.
    """

    name: str
    title: str
    url: str
    digest: str
    sections: tuple[Section, ...]


def read_runbooks(path: Path, *, base_url: str = "") -> list[Runbook]:
    """The runbooks of a file, or of every Markdown and text file below a folder (hidden ones left out), by name.

    `base_url` is put before a file's path to link to it. Raises `RequestError` for a path that holds none, and for a
    file that is too large.
    """
    if base_url and not base_url.startswith(("http://", "https://")):
        raise RequestError(f"{base_url} is no link.", "Give it as https://HOST/PATH.")
    if path.is_file():
        files, root = [path], path.parent
    elif path.is_dir():
        files, root = sorted(_below(path)), path
    else:
        raise RequestError(f"There is no file or folder {path}.", "Give a Markdown file, or a folder of them.")
    found = [_read(file, file.relative_to(root), base_url) for file in files]
    runbooks = [runbook for runbook in found if runbook.sections]
    if not runbooks:
        raise RequestError(
            f"{path} holds no runbook.", f"A runbook is a file with text that ends in {', '.join(SUFFIXES)}."
        )
    return runbooks


def _below(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        inside = file.relative_to(folder)
        if file.suffix.lower() in SUFFIXES and file.is_file() and not any(part[0] == "." for part in inside.parts):
            yield file


def _read(file: Path, inside: Path, base_url: str) -> Runbook:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise RequestError(
            f"{file} is larger than {MAX_FILE_BYTES:,} bytes.", "Split it, or keep it out of the folder."
        )
    data = file.read_bytes()
    name = (inside.with_suffix("") if inside.suffix == ".md" else inside).as_posix()
    title, sections = split(data.decode("utf-8", "replace"))
    return Runbook(
        name=name,
        title=title or inside.stem,
        url=f"{base_url.rstrip('/')}/{inside.as_posix()}" if base_url else "",
        digest=hashlib.sha256(data).hexdigest(),
        sections=sections,
    )


def split(markdown: str) -> tuple[str, tuple[Section, ...]]:
    """Title ("" if it states none) and sections of a Markdown text, in order.

    The title is the first heading of the first level, or what the front matter says.
    """
    text = markdown.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    front = _FRONT.match(text)
    stated = _FRONT_TITLE.search(front[1]) if front else None
    title = stated[1].strip() if stated else ""
    text = _COMMENT.sub("", text[front.end() :] if front else text)
    lines = text.split("\n")
    path: list[tuple[int, str]] = []
    sections: list[Section] = []
    seen_title = False
    start = 0
    for first, after, level, heading in [*_headings(text), (len(lines), len(lines), 0, "")]:
        sections += _sections(" > ".join(name for _, name in path), lines[start:first])
        start = after
        if level == 1 and not seen_title:
            title, seen_title, path = heading or title, True, []
        else:
            path = [(depth, name) for depth, name in path if depth < level] + [(level, heading)]
    return title, tuple(sections)


def _headings(text: str) -> Iterator[tuple[int, int, int, str]]:
    """First line, line after, level and words of each heading; a `#` in a block of code is none."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").parse(text)
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.map is not None and token.level == 0:
            yield token.map[0], token.map[1], int(token.tag[1:]), plain(inline.content)


def _sections(heading: str, lines: list[str]) -> Iterator[Section]:
    """The text below a heading in pieces of bounded length, cut at blank lines where there are any."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        for begin in range(0, len(paragraph), MAX_SECTION_CHARS):
            part = paragraph[begin : begin + MAX_SECTION_CHARS].strip("\n")
            if piece and len(piece) + len(part) > MAX_SECTION_CHARS:
                yield Section(heading=heading, text=piece)
                piece = ""
            piece = f"{piece}\n\n{part}" if piece else part
    if piece.strip():
        yield Section(heading=heading, text=piece)


def plain(text: str) -> str:
    """Markdown without its links' addresses and its marks of emphasis and code, on one line."""
    return " ".join(_LINK.sub(r"\1", text).replace("**", "").replace("`", "").split())


def steps(section: str) -> tuple[str, ...]:
    """What a section tells to do: its list items and commands, in order, or else its first sentence.

    Commands are the lines of a code block after a prompt (`$ df -h`), or the first line of a block of a shell.
    """
    found: list[str] = []
    prose: list[str] = []
    code: list[str] | None = None
    shell = False
    for line in [*section.split("\n"), ""]:
        fence = _FENCE.match(line)
        if fence is not None and code is None:
            code, shell = [], fence[1].lower() in _SHELLS
        elif fence is not None and code is not None:
            prompted = [_PROMPT.sub("", item) for item in code if _PROMPT.match(item)]
            found += [_command(item) for item in prompted or (code[:1] if shell else [])]
            code = None
        elif code is not None:
            code += [line] if line.strip() and not line.lstrip().startswith("#") else []
        elif (item := _ITEM.match(line)) and item[1].strip():
            found.append(plain(item[1]))
        else:
            prose.append(line)
    if not found:
        first = re.split(r"(?<=[.!?])\s", plain(" ".join(prose)), maxsplit=1)[0]
        found = [first] if first else []
    return tuple(step if len(step) <= MAX_STEP_CHARS else step[: MAX_STEP_CHARS - 1] + "…" for step in found)


def _command(line: str) -> str:
    return line.strip() if "`" in line else f"`{line.strip()}`"
