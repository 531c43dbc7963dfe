"""Hold an answer to a JSON Schema, a regular expression or a Lark grammar: which tokens may come next, which must.

`llguidance` compiles each of them to a parser over tokens. After each token it gives a bit mask of those that may
follow, and the run of tokens that must (`{"category": "` and other scaffolding): those are appended unsampled and
computed as one chunk, which makes the skeleton of an answer nearly free.
Its limits bound what one step may cost; a grammar that hits them later ends its answer with `error`.
Reference: https://github.com/guidance-ai/llguidance.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from midwatch.engine.request import SamplingParams
from midwatch.engine.tokenizer import Tokenizer
from midwatch.errors import RequestError

if TYPE_CHECKING:
    import llguidance

MAX_SOURCE_BYTES = 1 << 16
"""Longer texts nest deep enough to overflow the compiler's stack."""
MAX_LEXER_STATES = 50_000
"""Of one answer; about 2 kB each."""
KEPT = 32
"""Compiled grammars that are kept, with what their masks have cost so far."""
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_HINTS = {
    "json_schema": "Send an object of JSON Schema whose keywords llguidance supports.",
    "regex": "Send a regular expression without look-around or back-references.",
    "grammar": "Send llguidance's Lark, with a rule called start.",
}


class GrammarCompiler:
    """Compile grammars for one tokenizer. Safe from any thread; the token trie is built on first use (about 0.1 s)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._trie: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], llguidance.LLMatcher] = OrderedDict()

    def compile(self, params: SamplingParams) -> Grammar:
        """A fresh matcher for one answer to a request whose `is_closed` is true.

        Raises `RequestError` (400) for a source that is invalid, unsatisfiable, too large or uses what llguidance does
        not support.
        """
        kind, text = _source(params)
        if len(text) > MAX_SOURCE_BYTES:
            raise _refused(kind, f"it has {len(text)} bytes and {MAX_SOURCE_BYTES} are allowed")
        with self._lock:
            matcher = self._kept.get((kind, text))
            if matcher is not None:
                self._kept.move_to_end((kind, text))
        if matcher is None:
            matcher = self._build(kind, text)
            with self._lock:
                self._kept[kind, text] = matcher
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        with self._lock:
            return Grammar(matcher.deep_copy(), self._tokenizer.vocab_size)

    def _build(self, kind: str, text: str) -> llguidance.LLMatcher:
        import llguidance

        trie = self._get_trie()
        limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        try:
            if kind == "json_schema":
                source = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=JSON_STYLE)
            elif kind == "regex":
                source = llguidance.LLMatcher.grammar_from_regex(text)
            else:
                source = llguidance.LLMatcher.grammar_from_lark(text)
        except ValueError as error:
            raise _refused(kind, str(error)) from None
        matcher = llguidance.LLMatcher(trie, source, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some only turn out unsatisfiable here; kept copies start with it done
        if matcher.is_error():
            raise _refused(kind, matcher.get_error())
        return matcher

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
    """Where one answer stands in its grammar. Safe from any thread: calls of one grammar wait for each other."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._lock = threading.Lock()

    @property
    def error(self) -> str:
        """Why the matcher gave up (a limit was hit, or a token was not allowed), or an empty string."""
        with self._lock:
            return str(self._matcher.get_error())

    @property
    def complete(self) -> bool:
        """True once the answer is whole and nothing more may follow."""
        with self._lock:
            return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def forced(self) -> list[int]:
        """Tokens that must come next, already taken; empty where there is a choice."""
        with self._lock:
            tokens: list[int] = self._matcher.compute_ff_tokens()
            if tokens and not self._matcher.consume_tokens(tokens):
                return []
            return tokens

    def accept(self, token_id: int) -> bool:
        """Take a sampled token; False if the grammar does not allow it, after which `error` says why."""
        with self._lock:
            return bool(self._matcher.consume_token(token_id))

    def accepts_prefix(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, from the first, the grammar would take now. Takes none of them."""
        with self._lock:
            if not token_ids or self._matcher.is_stopped():
                return 0
            return int(self._matcher.validate_tokens(list(token_ids)))

    def allowed(self) -> npt.NDArray[np.int32]:
        """Which tokens may come next: ceil(V / 32) words, lowest bit first, a set bit is allowed.

        The array is the caller's. A whole answer allows the end-of-turn tokens alone.
        """
        mask = np.empty(-(-self._vocab_size // 32), np.int32)
        with self._lock:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return mask

    def fork(self) -> Grammar:
        """A copy that goes its own way from here: one for each of n answers."""
        with self._lock:
            return Grammar(self._matcher.deep_copy(), self._vocab_size)


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


def _source(params: SamplingParams) -> tuple[str, str]:
    if params.regex is not None:
        return "regex", params.regex
    if params.grammar is not None:
        return "grammar", params.grammar
    assert params.json_schema is not None, "the engine compiles grammars of closed requests only"
    try:
        return "json_schema", json.dumps(params.json_schema)
    except (TypeError, ValueError, RecursionError):
        raise _refused("json_schema", "it is not plain JSON, or is nested too deep") from None


def _refused(kind: str, why: str) -> RequestError:
    first_line = why.strip().splitlines()[0][:300] if why.strip() else "it cannot be compiled"
    name = "JSON schema" if kind == "json_schema" else kind
    return RequestError(f"The {name} cannot be used: {first_line}.", _HINTS[kind], param=kind)
