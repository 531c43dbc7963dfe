"""Conversations as JSON lines: {"messages": [{"role": ..., "content": ...}, ...]}, one to a line.

A system message may come first; then user and assistant take turns, and the assistant has the last word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midwatch.errors import TuningError

ROLES = ("system", "user", "assistant")
SHOWN_LINES = 5


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """Its text, never empty."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages in order, and what is known about them (`kind`, `style`, ...)."""

    messages: tuple[Message, ...]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The user's last message."""
        return next(message.content for message in reversed(self.messages) if message.role == "user")

    @property
    def answer(self) -> str:
        """The assistant's last message."""
        return self.messages[-1].content

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as a chat template takes them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


def read_jsonl(path: Path) -> list[Conversation]:
    """Read every conversation of a file in UTF-8; a byte order mark, CRLF and blank lines do no harm.

    Raises `TuningError` that names the file and each bad line with what is wrong there (the first five, and how many
    more), or says that the file is missing or holds no conversation.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TuningError(f"{path} cannot be read: {error.strerror}.", "Name a file of JSON lines.") from None
    found, wrong = [], []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                found.append(_conversation(json.loads(line.decode("utf-8"))))
            except UnicodeDecodeError as error:
                wrong.append(f"line {number}: not UTF-8 at its byte {error.start + 1}")
            except json.JSONDecodeError as error:
                wrong.append(f"line {number}: not JSON ({error.msg} at column {error.colno})")
            except RecursionError:
                wrong.append(f"line {number}: not JSON that can be read (nested too deeply)")
            except ValueError as error:
                wrong.append(f"line {number}: {error}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN_LINES} more" if len(wrong) > SHOWN_LINES else ""
        lines = "1 bad line" if len(wrong) == 1 else f"{len(wrong)} bad lines"
        raise TuningError(
            f"{path} has {lines}: {'; '.join(wrong[:SHOWN_LINES])}{more}.",
            'A line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.',
        )
    if not found:
        raise TuningError(f"{path} holds no conversation.", "Write one JSON object of chat messages to a line.")
    return found


def write_jsonl(conversations: Iterable[Conversation], path: Path) -> int:
    """Write one conversation to a line, with its tags; make the folder if need be. Returns how many were written."""
    lines = []
    for conversation in conversations:
        record: dict[str, Any] = {"messages": conversation.as_dicts()}
        if conversation.tags:
            record["tags"] = conversation.tags
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return len(lines)


def _conversation(record: Any) -> Conversation:
    """Check one line's object. Raises ValueError that says what is wrong, without the line's number."""
    if not isinstance(record, dict) or "messages" not in record:
        raise ValueError('not an object with "messages"')
    listed = record["messages"]
    if not isinstance(listed, list) or not listed:
        raise ValueError('"messages" is not a list with at least one message')
    messages = tuple(_message(index, item) for index, item in enumerate(listed, start=1))
    turns = messages[1:] if messages[0].role == "system" else messages
    for index, message in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            place = index + 1 + len(messages) - len(turns)
            raise ValueError(f"message {place} is from {message.role!r}, expected {expected!r}")
    if not turns or turns[-1].role != "assistant":
        raise ValueError(f"ends with the {messages[-1].role}'s message; the assistant's answer is missing")
    tags = record.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise ValueError('"tags" is not an object of strings')
    return Conversation(messages=messages, tags=tags)


def _message(index: int, item: Any) -> Message:
    if not isinstance(item, dict):
        raise ValueError(f"message {index} is not an object")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise ValueError(f"message {index} has the role {role!r}; allowed are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"message {index} has no text in its content")
    if not content.strip():
        raise ValueError(f"message {index} has an empty content")
    if any("\ud800" <= letter <= "\udfff" for letter in content):
        raise ValueError(f"message {index} has half of a surrogate pair, which is no text")
    return Message(role=role, content=content)
