"""Compile a stranger's grammar where it can do no harm first: in a process of its own, with little time and memory.

llguidance bounds what one step costs, but not all of compilation: an intersection of twenty patterns runs for minutes,
and a chain of some thousand rules overflows the stack and takes the process with it. So a grammar that could do either
is tried in a child process; only what passes is compiled here. The child imports no torch, starts with the first such
grammar (about 0.3 s) and ends with its parent. Without POSIX timers there is no trial.
"""

from __future__ import annotations

import functools
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from midwatch.errors import RequestError

if TYPE_CHECKING:
    import llguidance

TRIAL_S = 2.0
QUEUE_S = 4.0
STACK_BYTES = 1 << 20
"""Of the child's compiling thread: half of the least that a thread here gets, so what fits there fits here."""
MEMORY_BYTES = 3 << 30
WORDS = ("[ a-zA-Z]{1,30}", "[ a-z]{1,30}")
"""Kinds of tokens whose masks are made once, beside those of JSON strings.

Where a pattern takes all of a kind, a mask costs 15 µs instead of 300.
"""
TAME_BYTES = 16_384
_WILD = ('"pattern', '"allOf"', '"$ref"', '"format"', '"multipleOf"', '"not"', '"$dynamicRef"', '"x-guidance"')
MAX_LEXER_STATES = 50_000
"""Of one answer; about 2 kB each."""
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A vocabulary as llguidance wants to see it (its `TokenizerWrapper` protocol).

    `encode` gives the ids of a text; None takes the longest token each time, which is enough for a trial.
    """

    tokens: list[bytes]
    eos_ids: list[int]
    bos_token_id: int | None
    special_token_ids: list[int]
    encode: Callable[[str], list[int]] | None = None
    is_tokenizer_wrapper: bool = True

    @property
    def eos_token_id(self) -> int:
        """The lowest of the end-of-turn ids."""
        return self.eos_ids[0]

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids of a text."""
        if self.encode is not None:
            return self.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
        rest, ids = text if isinstance(text, bytes) else text.encode(), []
        while rest:
            size = next((size for size in range(min(len(rest), 32), 0, -1) if rest[:size] in self._by_bytes), 0)
            ids += [self._by_bytes[rest[:size]]] if size else []
            rest = rest[max(size, 1) :]
        return ids

    @functools.cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {token: id_ for id_, token in enumerate(self.tokens) if id_ not in special}

    def trie(self) -> llguidance.LLTokenizer:
        """The token trie, about 0.1 s for 50,000 tokens."""
        import llguidance

        wrapper: Any = self
        slices = [*llguidance.LLTokenizer.general_slices(), *WORDS]
        return llguidance.LLTokenizer(wrapper, n_vocab=len(self.tokens), eos_token=self.eos_ids, slices=slices)


def build(trie: llguidance.LLTokenizer, kind: str, text: str) -> llguidance.LLMatcher:
    """Compile a `json_schema`, a `regex` or a `grammar`, first mask included. Raises `ValueError` with the reason."""
    import llguidance

    matchers = llguidance.LLMatcher
    if kind == "json_schema":
        source = matchers.grammar_from_json_schema(text, overrides=JSON_STYLE)
    else:
        source = matchers.grammar_from_regex(text) if kind == "regex" else matchers.grammar_from_lark(text)
    limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
    matcher = matchers(trie, source, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some only turn out unsatisfiable here
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher


def is_tame(kind: str, text: str) -> bool:
    """True for a short schema without patterns, intersections and references: it can neither explode nor nest deep."""
    return kind == "json_schema" and len(text) <= TAME_BYTES and not any(word in text for word in _WILD)


class Trial:
    """The child process, started when it is first needed and again after it died. Safe from any thread."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, kind: str, text: str) -> None:
        """Raise `ValueError` with the reason if this does not compile within `TRIAL_S` seconds.

        Raises `RequestError` (429) if too many others are being tried.
        """
        if os.name != "posix":
            return
        if not self._lock.acquire(timeout=QUEUE_S):
            what = "Too many grammars are being compiled."
            raise RequestError(what, "Try again soon.", status=429)
        try:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                _send(process.stdin, (kind, text))
                ready, _, _ = select.select([process.stdout], [], [], TRIAL_S + 1)
                reason = _receive(process.stdout) if ready else None
            except (BrokenPipeError, EOFError):
                reason = None
            if reason is None:
                code = self._end(process)
                late = code in {-signal.SIGALRM, -signal.SIGKILL}
                raise ValueError(f"it takes more than {TRIAL_S:g} s to compile" if late else "it nests too deep")
        finally:
            self._lock.release()
        if reason:
            raise ValueError(reason)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._process is not None:
                self._end(self._process)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-c", "from midwatch.engine.grammar_trial import main; main()"]
            # The child finds this package where the parent did, whatever made that so.
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            weakref.finalize(self, _stop, self._process)  # an owner that is dropped without `close` leaves no child
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            _send(self._process.stdin, self._vocabulary())
            _receive(self._process.stdout)  # the trie stands
        return self._process

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        self._process = None
        return _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.kill()
    with process:
        return process.wait()


def main() -> None:
    """The child: a vocabulary comes in, then one grammar after another; out goes "" or the reason against it."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # CTRL-C is for the parent, whose end closes our input
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    trie = _receive(incoming).trie()
    _send(outgoing, "")
    threading.stack_size(STACK_BYTES)
    while True:
        try:
            kind, text = _receive(incoming)
        except EOFError:
            return
        reasons: list[str] = []
        signal.setitimer(signal.ITIMER_REAL, TRIAL_S)  # its default action ends the process, compiling or not
        thread = threading.Thread(target=_try, args=(trie, kind, text, reasons))
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(outgoing, reasons[0] if reasons else "it cannot be compiled")


def _try(trie: llguidance.LLTokenizer, kind: str, text: str, reasons: list[str]) -> None:
    try:
        build(trie, kind, text)
        reasons.append("")
    except ValueError as error:
        reasons.append(str(error)[:2000] or "it cannot be compiled")


def _send(stream: IO[bytes], value: object) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """The next value that the other side sent; `EOFError` if it is gone. Both sides are this very module."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0]))  # noqa: S301
