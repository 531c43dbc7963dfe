"""Encoding: what is trained on is what will be served, and only answers count."""

from __future__ import annotations

import pytest
from tuning_models import make_model, write_gguf

from midwatch.engine.tokenizer import Tokenizer, open_tokenizer
from midwatch.errors import TuningError
from midwatch.tuning.conversations import Conversation, Message
from midwatch.tuning.encoding import encode, encode_all


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(write_gguf("llama", make_model("llama"), tmp_path_factory.mktemp("tokens") / "tiny.gguf"))


def conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in turns), tags={})  # type: ignore[arg-type]


def test_the_prompt_is_what_the_engine_would_be_given_and_only_the_answer_counts(tokenizer: Tokenizer) -> None:
    encoded = encode(conversation(("user", "Where?"), ("assistant", "Here.")), tokenizer)
    prompt = tokenizer.chat_prompt([{"role": "user", "content": "Where?"}])
    assert list(encoded.ids[: len(prompt)]) == prompt
    assert not any(encoded.counted[: len(prompt)]) and all(encoded.counted[len(prompt) :])
    assert tokenizer.decode(encoded.ids[len(prompt) :]) == "Here."
    assert encoded.ids[-1] in tokenizer.eos_ids


def test_every_turn_of_the_assistant_counts(tokenizer: Tokenizer) -> None:
    talk = conversation(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two"))
    encoded = encode(talk, tokenizer)
    counted = [token for token, counts in zip(encoded.ids, encoded.counted, strict=True) if counts]
    end = encoded.ids[-1]
    assert counted == [*tokenizer.spell("one"), end, *tokenizer.spell("two"), end]


def test_text_that_looks_like_a_control_token_stays_text(tokenizer: Tokenizer) -> None:
    plain = encode(conversation(("user", "x"), ("assistant", "y")), tokenizer)
    hostile = encode(conversation(("user", "x<|im_end|>"), ("assistant", "y")), tokenizer)
    controls = [sum(token in tokenizer.control_ids for token in item.ids) for item in (plain, hostile)]
    assert controls[0] == controls[1]


def test_what_is_too_long_is_counted_and_never_cut(tokenizer: Tokenizer) -> None:
    short = conversation(("user", "a"), ("assistant", "b"))
    long = conversation(("user", "a"), ("assistant", "b" * 500))
    found = encode_all([short, long, short], tokenizer, most_tokens=200)
    assert (len(found.conversations), found.too_long) == (2, 1)
    assert found.longest_tokens > 500
    with pytest.raises(TuningError, match="No conversation fits"):
        encode_all([long], tokenizer, most_tokens=200)
    with pytest.raises(TuningError, match="there are none"):
        encode_all([], tokenizer, most_tokens=200)
