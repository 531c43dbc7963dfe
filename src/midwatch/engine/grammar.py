"""Hold an answer to a JSON Schema, a regular expression or a Lark grammar: which tokens may come next, which must.

`llguidance` compiles each of them to a parser over tokens. After each token it gives a bit mask of those that may
follow, and the run of tokens that must (`{"category": "` and other scaffolding): those are appended unsampled and
computed as one chunk, which makes the skeleton of an answer nearly free.
Its limits bound what one step may cost; a grammar that hits them later ends its answer with `error`. What could hang or
crash the compiler itself is tried in another process first (`grammar_trial.py`).
Reference: https://github.com/guidance-ai/llguidance.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from midwatch.engine.grammar_trial import Trial, Vocabulary, build, is_tame
from midwatch.engine.request import SamplingParams
from midwatch.engine.tokenizer import Tokenizer
from midwatch.errors import RequestError

if TYPE_CHECKING:
    import llguidance

_T = TypeVar("_T")

MAX_SOURCE_BYTES = 1 << 16
"""Longer texts only cost time: a schema of so many bytes compiles in a second at most."""
KEPT = 32
"""Compiled grammars that are kept, with what their masks have cost so far."""
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
        self._trial = Trial(lambda: self._vocabulary(for_trial=True))
        self._refused: OrderedDict[tuple[str, str], str] = OrderedDict()
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
            refused = self._refused.get((kind, text))
        if refused is not None:
            raise _refused(kind, refused)
        if matcher is None:
            matcher = self._build(kind, text)
        with self._lock:
            _keep(self._kept, (kind, text), matcher)
            return Grammar(matcher.deep_copy(), self._tokenizer.vocab_size)

    def close(self) -> None:
        """End the process that tries grammars, if there is one."""
        self._trial.close()

    def _build(self, kind: str, text: str) -> llguidance.LLMatcher:
        try:
            if not is_tame(kind, text):
                self._trial.check(kind, text)
            return build(self._get_trie(), kind, text)
        except ValueError as error:
            with self._lock:
                _keep(self._refused, (kind, text), str(error))
            raise _refused(kind, str(error)) from None

    def _get_trie(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._trie is None:
                self._trie = self._vocabulary().trie()
            return self._trie

    def _vocabulary(self, *, for_trial: bool = False) -> Vocabulary:
        tokenizer = self._tokenizer
        return Vocabulary(
            tokens=[tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)],
            eos_ids=sorted(tokenizer.eos_ids),
            bos_token_id=tokenizer.bos_id,
            special_token_ids=sorted(tokenizer.control_ids),
            encode=None if for_trial else tokenizer.spell,
        )


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


def _keep(cache: OrderedDict[tuple[str, str], _T], key: tuple[str, str], value: _T) -> None:
    """Put a value in as the latest, and drop the one that was not used for longest."""
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > KEPT:
        cache.popitem(last=False)


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
    reason = " ".join(why.split())[:300].rstrip(" .:") or "it cannot be compiled"
    name = "JSON schema" if kind == "json_schema" else kind
    return RequestError(f"The {name} cannot be used: {reason}.", _HINTS[kind], param=kind)
