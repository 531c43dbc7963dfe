"""Hold an answer to a JSON Schema: which tokens may come next, and which must.

`llguidance` compiles the schema to a parser over tokens. After each token it gives a mask of those that may follow,
and the run of tokens that must (`{"category": "` and other scaffolding): those are appended unsampled and computed as
one chunk, which makes the skeleton of an answer nearly free. Reference: https://github.com/guidance-ai/llguidance.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from midwatch.engine.tokenizer import Tokenizer
from midwatch.errors import RequestError

if TYPE_CHECKING:
    import llguidance

MAX_SCHEMA_BYTES = 1 << 18
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarCompiler:
    """Compile schemas for one tokenizer. Safe from any thread; the token trie is built on first use (about 0.1 s)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._trie: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, schema: dict[str, Any]) -> Grammar:
        """A fresh matcher for one request.

        Raises `RequestError` (400) for a schema that is invalid, unsatisfiable, too large or uses an unsupported
        keyword.
        """
        import llguidance

        try:
            text = json.dumps(schema)
        except (TypeError, ValueError, RecursionError):
            raise _refused("it is not plain JSON, or is nested too deep") from None
        if len(text) > MAX_SCHEMA_BYTES:
            raise _refused(f"it has {len(text)} bytes and {MAX_SCHEMA_BYTES} are allowed")
        trie = self._get_trie()
        try:
            source = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=JSON_STYLE)
        except ValueError as error:
            raise _refused(str(error)) from None
        matcher = llguidance.LLMatcher(trie, source, log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return Grammar(matcher, self._tokenizer.vocab_size)

    def _get_trie(self) -> llguidance.LLTokenizer:
        import llguidance

        with self._lock:
            if self._trie is None:
                adapter: Any = _TrieSource(self._tokenizer)
                self._trie = llguidance.LLTokenizer(
                    adapter, n_vocab=self._tokenizer.vocab_size, eos_token=sorted(self._tokenizer.eos_ids)
                )
            return self._trie


class Grammar:
    """Where one answer stands in its schema."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def error(self) -> str:
        """Why the matcher gave up (a limit was hit), or an empty string."""
        return str(self._matcher.get_error())

    @property
    def complete(self) -> bool:
        """True once the value is whole and nothing more may follow."""
        return bool(self._matcher.is_stopped())

    def forced(self) -> list[int]:
        """Tokens that must come next, already taken; empty where there is a choice."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        if tokens and not self._matcher.consume_tokens(tokens):
            return []
        return tokens

    def accept(self, token_id: int) -> bool:
        """Take a sampled token; False if the schema does not allow it, after which `error` says why."""
        return bool(self._matcher.consume_token(token_id))

    def forbidden(self) -> torch.Tensor:
        """Which tokens may not come next, bool of shape [V]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=self._vocab_size)
        return torch.from_numpy(allowed == 0)


class _TrieSource:
    """The vocabulary as llguidance wants to see it (its `TokenizerWrapper` protocol)."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.spell(plain)


def _refused(why: str) -> RequestError:
    first_line = why.strip().splitlines()[0][:300] if why.strip() else "it cannot be compiled"
    return RequestError(
        f"The JSON schema cannot be used: {first_line}.",
        "Send an object of JSON Schema whose keywords llguidance supports.",
        param="json_schema",
    )
