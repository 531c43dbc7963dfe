"""The engine: `step` = schedule, run, sample. Requests go in, each step's new text and tokens come out.

Not safe for several threads; `async_engine.py` gives it one of its own. The exceptions are `prepare`,
`next_request_id`, `check_room`, `chat_prompt` and `stats`, which touch nothing that a step changes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence as Ids
from pathlib import Path
from typing import Any

import torch

from midwatch.engine.blocks import KVStore
from midwatch.engine.cores import usable_cores
from midwatch.engine.grammar import GrammarCompiler
from midwatch.engine.request import EngineStats, Output, SamplingParams, TokenLogprob, TopLogprob
from midwatch.engine.sampler import Draw, Drawn, sample
from midwatch.engine.scheduler import Chunk, Scheduler
from midwatch.engine.sequence import Sequence
from midwatch.engine.tokenizer import Tokenizer
from midwatch.engine.transformer import Span, Transformer
from midwatch.engine.weights import GGUF, read_config
from midwatch.errors import RequestError
from midwatch.settings import EngineSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SCRATCH_ID = 0  # no request has this id


class Engine:
    """A loaded model that serves many requests at once."""

    def __init__(
        self, tokenizer: Tokenizer, transformer: Transformer, settings: EngineSettings, max_model_len: int
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_model_len = max_model_len
        self.threads = settings.threads or usable_cores()
        self._transformer = transformer
        self._scheduler = Scheduler(settings.max_num_seqs, settings.max_num_batched_tokens)
        self._kv = KVStore(transformer.config, transformer.dtype, max_model_len)
        self._grammars = GrammarCompiler(tokenizer)
        self._finished: list[Sequence] = []
        self._ids = itertools.count(_SCRATCH_ID + 1)
        self._prompt_tokens = self._generated = self._forced = self._requests = self._aborted = self._steps = 0
        self._step_seconds = self._last_step_ms = 0.0

    @classmethod
    def load(cls, path: Path, settings: EngineSettings) -> Engine:
        """Load a GGUF file.

        Raises `ModelError` for one that is missing, damaged or of a kind the engine does not run.
        """
        torch.set_num_threads(settings.threads or usable_cores())
        gguf = GGUF(path)
        config = read_config(gguf)
        max_model_len = min(settings.max_model_len, config.context_length)
        tokenizer = Tokenizer(gguf)
        transformer = Transformer(
            gguf, config, dtype=DTYPES[settings.dtype], quantization=settings.quantization, max_positions=max_model_len
        )
        return cls(tokenizer, transformer, settings, max_model_len)

    def bind_thread(self) -> None:
        """Give the calling thread the engine's number of CPU threads; call it in the thread that will step."""
        torch.set_num_threads(self.threads)

    def warm_up(self) -> None:
        """Pay now for what the first request would wait for: kernels for a few shapes, the grammar's token trie."""
        for num_tokens in (1, 64):
            self.prompt_logits([0] * min(num_tokens, self.max_model_len))
        self._grammars.compile({"type": "null"})

    @property
    def has_work(self) -> bool:
        """True while any request is unfinished."""
        return self._scheduler.has_work or bool(self._finished)

    def chat_prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        """The prompt ids of a conversation of {"role", "content"} messages, ready for the assistant's turn."""
        return self.tokenizer.chat_prompt(messages)

    def add_request(self, prompt_ids: Ids[int], params: SamplingParams) -> int:
        """Queue a request and return its id.

        Raises `RequestError`: 400 if it cannot be served, 429 if the queue is full.
        """
        self.check_room(self._scheduler.num_unfinished)
        request_id = self.next_request_id()
        self.admit(self.prepare(prompt_ids, params, request_id))
        return request_id

    def next_request_id(self) -> int:
        """A fresh id."""
        return next(self._ids)

    def check_room(self, num_in_flight: int) -> None:
        """Raise `RequestError` (429) if one more request would wait behind more than `max_waiting` others."""
        if num_in_flight >= self.settings.max_num_seqs + self.settings.max_waiting:
            raise RequestError(
                f"The engine is full: {self.settings.max_num_seqs} requests run, {self.settings.max_waiting} wait.",
                "Try again soon, or raise engine.max_waiting.",
                status=429,
            )

    def prepare(self, prompt_ids: Ids[int], params: SamplingParams, request_id: int) -> Sequence:
        """Check a request and compile its grammar. Raises `RequestError` (400)."""
        if not prompt_ids:
            raise RequestError("The prompt is empty.", "Send at least one token.", param="prompt")
        room = self.max_model_len - len(prompt_ids)
        if room < 1:
            raise RequestError(
                f"The prompt has {len(prompt_ids)} tokens; the context holds {self.max_model_len}, answer included.",
                f"Shorten the prompt to at most {self.max_model_len - 1} tokens.",
                param="prompt",
            )
        vocab_size = self.tokenizer.vocab_size
        if min(prompt_ids) < 0 or max(prompt_ids) >= vocab_size:
            raise RequestError(f"The prompt holds token ids outside 0 to {vocab_size - 1}.", param="prompt")
        grammar = self._grammars.compile(params.json_schema) if params.json_schema is not None else None
        sequence = Sequence(
            request_id,
            prompt_ids,
            params,
            tokenizer=self.tokenizer,
            grammar=grammar,
            max_tokens=min(params.max_tokens, room),
        )
        self._force(sequence)
        return sequence

    def admit(self, sequence: Sequence) -> None:
        """Queue a prepared request."""
        self._requests += 1
        self._prompt_tokens += sequence.num_prompt_tokens
        self._generated += sequence.num_completion_tokens
        if sequence.finish_reason is not None:  # the grammar left nothing to choose: no step is needed
            self._finished.append(sequence)
        else:
            self._scheduler.add(sequence)

    def abort(self, request_id: int) -> bool:
        """Drop a request and free what it holds; False if it is unknown or already finished."""
        found = self._scheduler.remove(request_id) is not None
        self._kv.free(request_id)
        self._aborted += found
        return found

    def step(self) -> list[Output]:
        """Compute one chunk of every scheduled sequence and sample those that are up to date.

        Nothing to do: no outputs.
        """
        started = time.perf_counter()
        finished = [sequence.take_output() for sequence in self._finished]
        self._finished.clear()
        chunks = self._scheduler.schedule()
        if not chunks:
            return finished
        logits_RV = self._run(chunks)
        due = [chunk.sequence for chunk in chunks if chunk.reaches_end]
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        outputs = self._sample(due, logits_RV)
        self._steps += 1
        elapsed = time.perf_counter() - started
        self._step_seconds += elapsed
        self._last_step_ms = elapsed * 1e3
        return finished + outputs

    def prompt_logits(self, prompt_ids: Ids[int], chunk_tokens: int | None = None) -> torch.Tensor:
        """Float32 logits after every token of a text, [T, V]: what scoring and quality checks read.

        `chunk_tokens` computes the text in pieces of that size, and so with the kernels that such steps use (1 is
        decode); None takes it whole. Not a serving path: do not call it while requests are running.
        """
        size = chunk_tokens or len(prompt_ids)
        rows = []
        try:
            for start in range(0, len(prompt_ids), size):
                piece = prompt_ids[start : start + size]
                self._kv.reserve(_SCRATCH_ID, start + len(piece))
                span = Span(_SCRATCH_ID, start, piece)
                rows.append(self._transformer.forward([span], range(len(piece)), self._kv))
            return torch.cat(rows)
        finally:
            self._kv.free(_SCRATCH_ID)

    def stats(self) -> EngineStats:
        """Counters and gauges; safe to call from another thread."""
        used, allocated = self._kv.slots()
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generated,
            forced_tokens_total=self._forced,
            requests_total=self._requests,
            aborted_total=self._aborted,
            steps_total=self._steps,
            step_seconds_total=self._step_seconds,
            last_step_ms=self._last_step_ms,
            kv_slots_used=used,
            kv_slots_allocated=allocated,
            kv_bytes_per_token=self._kv.bytes_per_token,
        )

    def _run(self, chunks: Ids[Chunk]) -> torch.Tensor:
        spans, logit_rows, end = [], [], 0
        for chunk in chunks:
            sequence = chunk.sequence
            start = sequence.num_computed_tokens
            self._kv.reserve(sequence.id, start + chunk.num_tokens)
            spans.append(Span(sequence.id, start, sequence.token_ids[start : start + chunk.num_tokens]))
            end += chunk.num_tokens
            if chunk.reaches_end:
                logit_rows.append(end - 1)
        return self._transformer.forward(spans, logit_rows, self._kv)

    @torch.inference_mode()
    def _sample(self, due: Ids[Sequence], logits_RV: torch.Tensor) -> list[Output]:
        if not due:
            return []
        draws = [
            Draw(item.params, item.random, item.grammar.forbidden() if item.grammar is not None else None)
            for item in due
        ]
        outputs = []
        for sequence, drawn in zip(due, sample(logits_RV, draws), strict=True):
            before = sequence.num_completion_tokens
            self._advance(sequence, drawn)
            self._generated += sequence.num_completion_tokens - before
            outputs.append(sequence.take_output())
            if sequence.finish_reason is not None:
                self._scheduler.remove(sequence.id)
                self._kv.free(sequence.id)
        return outputs

    def _advance(self, sequence: Sequence, drawn: Drawn) -> None:
        """Add a sampled token and what the grammar forces after it, or finish the sequence."""
        params, token_id = sequence.params, drawn.token_id
        ends = token_id in self.tokenizer.eos_ids and not (params.ignore_eos and sequence.grammar is None)
        if ends or token_id in params.stop_token_ids:
            sequence.num_hidden_tokens += 1
            sequence.finish_reason = "stop"
            return
        if sequence.grammar is not None and not sequence.grammar.accept(token_id):
            sequence.finish_reason = "error"
            return
        sequence.append(token_id, self._logprob(drawn))
        self._force(sequence)

    def _force(self, sequence: Sequence) -> None:
        """Append what the grammar leaves no choice in, then see whether the answer is over."""
        grammar = sequence.grammar
        if grammar is not None and sequence.finish_reason is None:
            for token_id in grammar.forced():
                full = sequence.num_completion_tokens >= sequence.max_tokens
                if full or sequence.finish_reason is not None or token_id in self.tokenizer.eos_ids:
                    break
                logprob = None
                if sequence.params.logprobs is not None:
                    token = self.tokenizer.token_bytes(token_id)
                    logprob = TokenLogprob(token_id=token_id, token=token, logprob=0.0, forced=True)
                sequence.append(token_id, logprob)
                self._forced += 1
        if sequence.finish_reason is not None:
            return
        if grammar is not None and grammar.error:
            sequence.finish_reason = "error"
        elif grammar is not None and grammar.complete:
            sequence.finish_reason = "stop"
        elif sequence.num_completion_tokens >= sequence.max_tokens:
            sequence.finish_reason = "length"

    def _logprob(self, drawn: Drawn) -> TokenLogprob | None:
        if drawn.logprob is None:
            return None
        token_bytes = self.tokenizer.token_bytes
        top = tuple(TopLogprob(token_id=id_, token=token_bytes(id_), logprob=value) for id_, value in drawn.top)
        return TokenLogprob(token_id=drawn.token_id, token=token_bytes(drawn.token_id), logprob=drawn.logprob, top=top)
