import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.errors import TuningError
from midwatch.tuning.conversations import Conversation, Message, read_jsonl, write_jsonl

GOOD = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(TuningError) as caught:
        read_jsonl(path)
    return str(caught.value)


def messages(*turns: tuple[object, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def test_a_byte_order_mark_crlf_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    plain = read_jsonl(write(tmp_path, f"{GOOD}\n{GOOD}\n"))
    assert read_jsonl(write(tmp_path, b"\xef\xbb\xbf" + f"\r\n{GOOD}\r\n\r\n  \r\n{GOOD}".encode())) == plain
    assert plain[0].messages == (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))


def test_line_separators_of_unicode_are_part_of_a_message(tmp_path: Path) -> None:
    text = messages(("user", "one\u2028two"), ("assistant", "ok\x85"))
    raw = text.encode().decode("unicode_escape")
    assert read_jsonl(write(tmp_path, raw))[0].question == "one\u2028two"


def test_a_system_message_may_come_first_and_turns_may_follow(tmp_path: Path) -> None:
    line = messages(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    found = read_jsonl(write(tmp_path, line))[0]
    assert (found.question, found.answer, len(found.messages)) == ("c", "d", 5)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "not JSON"),
        ("[1]", 'not an object with "messages"'),
        ('{"prompt": "x"}', 'not an object with "messages"'),
        ('{"messages": []}', "at least one message"),
        ('{"messages": "hello"}', "at least one message"),
        ('{"messages": [7]}', "message 1 is not an object"),
        (messages(("user", "a")), "the assistant's answer is missing"),
        (messages(("system", "a")), "the assistant's answer is missing"),
        (messages(("assistant", "a")), "message 1 is from 'assistant', expected 'user'"),
        (messages(("user", "a"), ("user", "b")), "message 2 is from 'user', expected 'assistant'"),
        (messages(("user", "a"), ("system", "s"), ("assistant", "b")), "message 2 is from 'system'"),
        (messages(("system", "s"), ("user", "a"), ("user", "b")), "message 3 is from 'user', expected 'assistant'"),
        (messages(("user", "a"), ("assistant", "  ")), "message 2 has an empty content"),
        (messages(("user", None), ("assistant", "b")), "message 1 has no text"),
        (messages(("user", ["x"]), ("assistant", "b")), "message 1 has no text"),
        (messages(("tool", "a"), ("assistant", "b")), "the role 'tool'; allowed are system, user, assistant"),
        (messages((["user"], "a"), ("assistant", "b")), "message 1 has the role"),
        (messages(("user", "\ud800"), ("assistant", "b")), "surrogate"),
        (GOOD[:-1] + ', "tags": {"kind": 3}}', '"tags" is not an object of strings'),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong_there(tmp_path: Path, line: str, wrong: str) -> None:
    said = complaint(write(tmp_path, f"{GOOD}\n{line}\n{GOOD}\n"))
    assert "1 bad line: line 2: " in said
    assert wrong in said


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    assert "line 2: not UTF-8 at its byte 3" in complaint(write(tmp_path, GOOD.encode() + b'\n{"\xff"}\n'))


def test_the_first_five_bad_lines_are_told_and_the_rest_is_counted(tmp_path: Path) -> None:
    said = complaint(write(tmp_path, "{}\n" * 12))
    assert "12 bad lines" in said
    assert "line 5:" in said
    assert "line 6:" not in said
    assert "and 7 more" in said


def test_an_empty_file_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    assert "holds no conversation" in complaint(write(tmp_path, "\n \n"))
    assert "cannot be read" in complaint(tmp_path / "nothing.jsonl")
    assert "cannot be read" in complaint(tmp_path)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


@given(st.lists(st.tuples(st.none() | texts, turns, st.dictionaries(texts, texts, max_size=2)), min_size=1, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, items: list) -> None:
    written = []
    for system, pairs, tags in items:
        said = [] if system is None else [Message(role="system", content=system)]
        for question, answer in pairs:
            said += [Message(role="user", content=question), Message(role="assistant", content=answer)]
        written.append(Conversation(messages=tuple(said), tags=tags))
    path = tmp_path_factory.mktemp("jsonl") / "new" / "data.jsonl"
    assert write_jsonl(written, path) == len(written)
    assert read_jsonl(path) == written
