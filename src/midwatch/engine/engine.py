"""The engine: `step` = schedule, run, sample. Requests go in, each step's new text and tokens come out.

A backend that works while we do not wait (CUDA) is given the next step before the results of the last are read: a
sequence in flight ends in a `PENDING` token, which the device fills in by itself. Everything else is the same.

Not safe for several threads; `async_engine.py` gives it one of its own. The exceptions are `prepare`, `check_room`,
`next_request_id`, `chat_prompt`, `stats` and `block_map`, which touch nothing that a step changes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence as Ids
from pathlib import Path
from typing import Any

import torch

from midwatch.engine.adapters import AdapterTable
from midwatch.engine.backends import open_backend
from midwatch.engine.batch import Backend
from midwatch.engine.blocks import BlockMap, BlockPool
from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.cores import usable_cores
from midwatch.engine.grammar import GrammarCompiler
from midwatch.engine.layout import lay_out
from midwatch.engine.memory import step_tokens
from midwatch.engine.request import EngineStats, Output, Pooling, SamplingParams
from midwatch.engine.runner import Flight, Runner
from midwatch.engine.scheduler import Chunk, Scheduler
from midwatch.engine.sequence import Sequence
from midwatch.engine.tokenizer import Tokenizer, open_tokenizer
from midwatch.errors import RequestError
from midwatch.settings import EngineSettings


class Engine:
    """A loaded model that serves many requests at once."""

    def __init__(self, tokenizer: Tokenizer, backend: Backend, settings: EngineSettings, max_model_len: int) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.backend = backend
        self.threads = settings.threads or usable_cores()
        self.pool = BlockPool(backend.num_blocks, backend.block_size, caching=settings.prefix_caching)
        self.max_model_len = min(max_model_len, backend.num_blocks * backend.block_size)
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=step_tokens(settings, backend.name),
        )
        self.adapters = AdapterTable(backend, settings.max_adapters)
        self._ids = itertools.count(1)
        self._runner = Runner(
            tokenizer,
            backend,
            self.scheduler,
            max_drafts=settings.speculative_tokens,
            next_id=self.next_request_id,
        )
        self._grammars = GrammarCompiler(tokenizer)
        self._finished: list[Sequence] = []
        self._flight: Flight | None = None
        self._prompt_tokens = self._requests = self._aborted = self._steps = self._last_step_tokens = 0
        self._step_seconds = self._last_step_ms = 0.0

    @classmethod
    def load(cls, path: Path, settings: EngineSettings, *, kernel_dir: Path | None = None) -> Engine:
        """Load a GGUF file or a folder of safetensors. `kernel_dir` keeps compiled kernels from one start to the next.

        Raises `ModelError` for one that is missing, damaged, too large or of a kind the engine does not run.
        """
        torch.set_num_threads(settings.threads or usable_cores())
        checkpoint = open_checkpoint(path)
        max_model_len = min(settings.max_model_len, checkpoint.config.context_length)
        tokenizer = open_tokenizer(path, checkpoint)
        backend = open_backend(checkpoint, settings, max_model_len=max_model_len, kernel_dir=kernel_dir)
        engine = cls(tokenizer, backend, settings, max_model_len)
        for name, folder in settings.adapters.items():
            engine.adapters.load(name, folder)
        return engine

    def bind_thread(self) -> None:
        """Give the calling thread the engine's number of CPU threads; call it in the thread that will step."""
        torch.set_num_threads(self.threads)

    def warm_up(self) -> None:
        """Pay now for what the first request would wait for: kernels for a few shapes, the grammar's token trie."""
        for num_tokens in (1, 64):
            self.prompt_logits([0] * min(num_tokens, self.max_model_len))
        self._grammars.compile(SamplingParams(json_schema={"type": "null"}))

    def close(self) -> None:
        """Let go of the backend's threads and memory. May be called twice."""
        self._runner.close()
        self._grammars.close()
        self.backend.close()

    @property
    def has_work(self) -> bool:
        """True while any request is unfinished."""
        return self.scheduler.has_work or bool(self._finished) or self._flight is not None

    def chat_prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        """The prompt ids of a conversation of {"role", "content"} messages, ready for the assistant's turn."""
        return self.tokenizer.chat_prompt(messages)

    def add_request(
        self,
        prompt_ids: Ids[int],
        params: SamplingParams,
        *,
        adapter: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        pooling: Pooling | None = None,
    ) -> int:
        """Queue a request and return its id.

        Raises `RequestError`: 400 if it cannot be served, 404 for an unknown adapter, 429 if the queue is full.
        """
        self.check_room(self.scheduler.num_unfinished)
        request_id = self.next_request_id()
        self.admit(
            self.prepare(
                prompt_ids,
                params,
                request_id,
                adapter=adapter,
                priority=priority,
                deadline_s=deadline_s,
                pooling=pooling,
            )
        )
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

    def prepare(
        self,
        prompt_ids: Ids[int],
        params: SamplingParams,
        request_id: int,
        *,
        adapter: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        pooling: Pooling | None = None,
    ) -> Sequence:
        """Check a request and compile its grammar. `deadline_s` counts from now. Raises `RequestError` (400, 404)."""
        self._check_prompt(prompt_ids, answers=pooling is None)
        self._check_ids("logit_bias", params.logit_bias)
        self._check_ids("stop_token_ids", params.stop_token_ids)
        chosen = self.adapters.find(adapter)
        now = time.monotonic()
        sequence = Sequence(
            request_id,
            prompt_ids,
            params,
            tokenizer=self.tokenizer,
            grammar=self._grammars.compile(params) if params.is_closed else None,
            max_tokens=min(params.max_tokens, self.max_model_len - len(prompt_ids)),
            priority=priority,
            rank_s=now + priority * self.settings.priority_ageing_s,
            deadline_s=math.inf if deadline_s is None else now + deadline_s,
            adapter_slot=-1 if chosen is None else chosen.slot,
            namespace=b"" if chosen is None else chosen.namespace,
            pooling=pooling,
        )
        self._runner.growth.force(sequence)
        return sequence

    def admit(self, sequence: Sequence) -> None:
        """Queue a prepared request."""
        self._requests += 1
        self._prompt_tokens += sequence.num_prompt_tokens
        self._runner.num_generated += sequence.num_completion_tokens
        if sequence.finish_reason is not None:  # the grammar left nothing to choose: no step is needed
            others = [sequence.fork(next(self._ids), index) for index in range(1, sequence.params.n)]
            for other in others:
                other.finish_reason = sequence.finish_reason
            self._finished += [sequence, *others]
        else:
            self._runner.live[sequence.id] = sequence
            self.scheduler.add(sequence)

    def abort(self, request_id: int) -> bool:
        """Drop all answers of a request and free what they hold; False if it is unknown or already finished."""
        found = [item for item in self._runner.live.values() if item.request_id == request_id]
        for sequence in found:
            self._runner.drop(sequence)
        self._aborted += bool(found)
        return bool(found)

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one chunk of every scheduled sequence and sample those that are up to date.

        Nothing to do: no outputs.
        """
        started = time.perf_counter()
        outputs = [sequence.take_output() for sequence in self._finished]
        self._finished.clear()
        runner = self._runner
        runner.draft()
        plan = self.scheduler.schedule(time.monotonic())
        outputs += [output for sequence in plan.expired for output in self._expire(sequence)]
        previous, flight = self._flight, runner.launch(plan.chunks, self._flight) if plan.chunks else None
        self._flight = None
        if previous is not None:
            outputs += runner.land(previous)
        if flight is not None:
            if flight.may_overlap:
                runner.leave_pending(flight)
                self._flight = flight
            else:
                outputs += runner.land(flight)
            self._steps += 1
            self._last_step_tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        if self.adapters.has_leaving:
            self.adapters.sweep({item.adapter_slot for item in runner.live.values()})
        elapsed = time.perf_counter() - started
        self._step_seconds += elapsed
        self._last_step_ms = elapsed * 1e3
        return outputs

    def prompt_logits(
        self, prompt_ids: Ids[int], chunk_tokens: int | None = None, *, adapter: str | None = None
    ) -> torch.Tensor:
        """Float32 logits after every token of a text, [T, V]: what scoring and quality checks read.

        `chunk_tokens` computes the text in pieces of that size, and so with the kernels that such steps use (1 is
        decode); None takes it whole. Not a serving path: do not call it while requests are running.
        """
        size = chunk_tokens or len(prompt_ids)
        params = SamplingParams(prompt_logprobs=0)
        chosen = self.adapters.find(adapter)
        slot = -1 if chosen is None else chosen.slot
        scratch = Sequence(
            next(self._ids), prompt_ids, params, tokenizer=self.tokenizer, max_tokens=1, adapter_slot=slot
        )
        self.pool.admit(scratch.id, ())
        rows = []
        try:
            for start in range(0, len(prompt_ids), size):
                count = min(size, len(prompt_ids) - start)
                grown = self.pool.grow(scratch.id, start + count)
                assert grown, "the text is longer than the pool"
                forward = self.backend.forward(lay_out([Chunk(scratch, start, count)], self.pool))
                rows.append(forward.logits_RV.clone())
            return torch.cat(rows)
        finally:
            self.pool.free(scratch.id)

    def block_map(self) -> BlockMap:
        """Every KV block, with the requests that hold it; safe to call from another thread."""
        return self.pool.block_map({item.id: item.request_id for item in list(self._runner.live.values())})

    def stats(self) -> EngineStats:
        """Counters and gauges; safe to call from another thread."""
        slots = self.pool.slots()
        return EngineStats(
            backend=self.backend.name,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._runner.num_generated,
            forced_tokens_total=self._runner.growth.num_forced,
            requests_total=self._requests,
            aborted_total=self._aborted,
            steps_total=self._steps,
            step_seconds_total=self._step_seconds,
            last_step_ms=self._last_step_ms,
            last_step_tokens=self._last_step_tokens,
            kv_blocks_total=self.pool.num_blocks,
            kv_blocks_free=self.pool.num_free,
            kv_block_size=self.pool.block_size,
            kv_slots_used=slots.used,
            kv_slots_allocated=slots.allocated,
            kv_slots_shared=slots.shared,
            kv_slots_empty=slots.empty,
            kv_slots_cached=slots.cached,
            kv_bytes_per_token=self.backend.kv_bytes_per_token,
            weight_bytes=self.backend.weight_bytes,
            prefix_cache_queries_total=self.scheduler.num_queried_tokens,
            prefix_cache_hits_total=self.scheduler.num_hit_tokens,
            preemptions_total=self.scheduler.num_preempted,
            spec_drafts_total=self._runner.num_drafts,
            spec_draft_tokens_total=self._runner.num_drafted_tokens,
            spec_accepted_tokens_total=self._runner.num_accepted_tokens,
            adapters=self.adapters.names,
        )

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter under a name that requests may ask for; between steps only."""
        self.adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        """Refuse an adapter to new requests; running ones keep it until they end. Between steps only."""
        self.adapters.unload(name, {item.adapter_slot for item in self._runner.live.values()})

    def _expire(self, sequence: Sequence) -> list[Output]:
        """The last words of a sequence whose time was up, and of the answers that it would have forked."""
        self._runner.drop(sequence)
        if sequence.is_pending:
            sequence.token_ids.pop()
        unborn = 0 if sequence.index or sequence.forked else sequence.params.n - 1
        answers = [sequence, *(sequence.fork(next(self._ids), index + 1) for index in range(unborn))]
        for answer in answers:
            answer.finish_reason = "deadline"
        return [answer.take_output() for answer in answers]

    def _check_prompt(self, prompt_ids: Ids[int], *, answers: bool) -> None:
        if not prompt_ids:
            raise RequestError("The prompt is empty.", "Send at least one token.", param="prompt")
        if len(prompt_ids) + answers > self.max_model_len:
            raise RequestError(
                f"The prompt has {len(prompt_ids)} tokens; the context holds {self.max_model_len}, answer included.",
                f"Shorten the prompt to at most {self.max_model_len - answers} tokens.",
                param="prompt",
            )
        self._check_ids("prompt", prompt_ids)

    def _check_ids(self, param: str, ids: Any) -> None:
        vocab_size = self.tokenizer.vocab_size
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            raise RequestError(
                f"{param} holds token ids outside the vocabulary.", f"Allowed are 0 to {vocab_size - 1}.", param=param
            )
