"""Text to ids and back, and conversations to prompts.

Text that only looks like `<|im_end|>` stays text: it is what every prompt and log line goes through. Control tokens
enter from the chat template alone. `vocabulary.py` and `tokenizer_json.py` say where the tokens come from.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from midwatch.engine import tokenizer_json, vocabulary
from midwatch.engine.chat_template import ChatTemplate
from midwatch.engine.checkpoint import Checkpoint
from midwatch.engine.gguf_checkpoint import GGUFCheckpoint
from midwatch.engine.sentencepiece import SPACE
from midwatch.engine.vocabulary import Vocabulary
from midwatch.engine.weights import GGUF


def open_tokenizer(path: Path, checkpoint: Checkpoint | None = None) -> Tokenizer:
    """The tokenizer of a GGUF file or of a folder; `checkpoint` saves reading a header twice if the model is open.

    Raises `ModelError` for a vocabulary that the engine cannot read.
    """
    if path.is_dir():
        return Tokenizer(tokenizer_json.from_folder(path))
    gguf = checkpoint.file if isinstance(checkpoint, GGUFCheckpoint) else GGUF(path)
    return Tokenizer(vocabulary.from_gguf(gguf))


class Tokenizer:
    """Encode, decode, and lay out conversations for one model."""

    def __init__(self, parts: Vocabulary) -> None:
        self.tokens = parts.tokens
        self.vocab_size = len(parts.tokens)
        self.control_ids = parts.control_ids
        self.eos_ids = parts.eos_ids
        self.bos_id = parts.bos_id
        self.adds_bos = parts.adds_bos and parts.bos_id is not None
        self._parts = parts
        self._bytes = {index: bytes([byte]) for byte, index in parts.byte_ids.items()}
        self._template = ChatTemplate(
            parts.template,
            special_tokens=tuple(parts.special_ids),
            bos_token="" if parts.bos_id is None else parts.tokens[parts.bos_id],
            eos_token=parts.eos_name,
        )

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; what looks like a control token is spelled out as text, never parsed."""
        ids = self.spell(text)
        return [self.bos_id, *ids] if self.adds_bos and self.bos_id is not None else ids

    def spell(self, text: str) -> list[int]:
        """The ids of plain text as it stands inside a prompt, without the token that begins every prompt."""
        return self._parts.spell(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, without control tokens; bytes that are no whole character become U+FFFD."""
        detokenizer = Detokenizer(self)
        text = "".join(map(detokenizer.add, token_ids)) + detokenizer.flush()
        return text.removeprefix(" ") if self._parts.space_prefix else text

    def chat_prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The ids of a conversation, ready for the assistant's next turn.

        Only the template's own text may hold control tokens. Raises `RequestError` for messages that are not
        well-formed and `ModelError` for a template that fails.
        """
        ids: list[int] = []
        for piece in self._template.render(messages):
            special = self._parts.special_ids.get(piece.text) if piece.special else None
            if special is not None:
                ids.append(special)
            else:
                ids.extend(self.spell(piece.text))
        if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; a control token stands for its own name."""
        token = self.tokens[token_id]
        if self._parts.byte_level:
            return vocabulary.byte_level_bytes(token)
        return self._bytes.get(token_id) or token.replace(SPACE, " ").encode("utf-8", "replace")


class Spelling(Protocol):
    """What turning ids into text needs of a vocabulary."""

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        ...


class Detokenizer:
    """Turn a stream of ids into text that is never broken inside a character."""

    def __init__(self, tokenizer: Spelling) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """The text that this token completes; the bytes of an unfinished character wait for the next token."""
        if token_id in self._tokenizer.control_ids:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left when the stream ends: U+FFFD for an unfinished character, or nothing."""
        return self._decoder.decode(b"", final=True)
