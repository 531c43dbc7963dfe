"""The engine: `step` = schedule, run, sample. Requests go in, each step's new text and tokens come out.

A backend that works while we do not wait (CUDA) is given the next step before the results of the last are read: a
sequence in flight ends in a `PENDING` token, which the device fills in by itself. Everything else is the same.

Not safe for several threads; `async_engine.py` gives it one of its own. The exceptions are `prepare`, `next_request_id`,
`check_room`, `chat_prompt`, `stats` and `block_map`, which touch nothing that a step changes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence as Ids
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from midwatch.engine.adapters import AdapterTable
from midwatch.engine.backends import open_backend
from midwatch.engine.batch import Backend, Forward
from midwatch.engine.blocks import BlockMap, BlockPool
from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.cores import usable_cores
from midwatch.engine.grammar import GrammarCompiler
from midwatch.engine.layout import lay_out
from midwatch.engine.request import EngineStats, Output, Pooling, SamplingParams, TokenLogprob, TopLogprob
from midwatch.engine.sampler import Draw, Drawn, Sampled, sample, score
from midwatch.engine.scheduler import Chunk, Scheduler
from midwatch.engine.sequence import PENDING, Sequence
from midwatch.engine.speculate import NgramDrafter
from midwatch.engine.tokenizer import Tokenizer, open_tokenizer
from midwatch.errors import RequestError
from midwatch.settings import EngineSettings


@dataclass(slots=True)
class _Flight:
    """A step under way: who is drawn for (`count` rows each), and whose embedding it completes."""

    chunks: list[Chunk]
    due: list[tuple[Sequence, int]] = field(default_factory=list)
    embedded: list[Sequence] = field(default_factory=list)
    sampled: Sampled | None = None
    may_overlap: bool = False


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
            max_num_batched_tokens=settings.max_num_batched_tokens,
        )
        self.adapters = AdapterTable(backend, settings.max_adapters)
        self._overlaps = bool(getattr(backend, "overlaps", False))
        self._grammars = GrammarCompiler(tokenizer)
        self._masks = ThreadPoolExecutor(1, thread_name_prefix="midwatch-grammar")
        self._finished: list[Sequence] = []
        self._live: dict[int, Sequence] = {}
        self._drafters: dict[int, NgramDrafter] = {}
        self._flight: _Flight | None = None
        self._ids = itertools.count(1)
        self._prompt_tokens = self._generated = self._forced = self._requests = self._aborted = self._steps = 0
        self._drafts = self._draft_tokens = self._accepted = self._last_step_tokens = 0
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
        self._masks.shutdown(wait=True)
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
        self._force(sequence)
        return sequence

    def admit(self, sequence: Sequence) -> None:
        """Queue a prepared request."""
        self._requests += 1
        self._prompt_tokens += sequence.num_prompt_tokens
        self._generated += sequence.num_completion_tokens
        if sequence.finish_reason is not None:  # the grammar left nothing to choose: no step is needed
            others = [sequence.fork(next(self._ids), index) for index in range(1, sequence.params.n)]
            for other in others:
                other.finish_reason = sequence.finish_reason
            self._finished += [sequence, *others]
        else:
            self._live[sequence.id] = sequence
            self.scheduler.add(sequence)

    def abort(self, request_id: int) -> bool:
        """Drop all answers of a request and free what they hold; False if it is unknown or already finished."""
        found = [item for item in self._live.values() if item.request_id == request_id]
        for sequence in found:
            self._drop(sequence)
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
        self._draft()
        plan = self.scheduler.schedule(time.monotonic())
        outputs += [output for sequence in plan.expired for output in self._expire(sequence)]
        previous, flight = self._flight, self._launch(plan.chunks) if plan.chunks else None
        if previous is not None:
            outputs += self._land(previous)
        self._flight = None
        if flight is not None:
            if self._overlaps and flight.may_overlap:
                self._leave_pending(flight)
            else:
                outputs += self._land(flight)
            self._steps += 1
            self._last_step_tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        elapsed = time.perf_counter() - started
        self._step_seconds += elapsed
        self._last_step_ms = elapsed * 1e3
        return outputs

    def prompt_logits(self, prompt_ids: Ids[int], chunk_tokens: int | None = None) -> torch.Tensor:
        """Float32 logits after every token of a text, [T, V]: what scoring and quality checks read.

        `chunk_tokens` computes the text in pieces of that size, and so with the kernels that such steps use (1 is
        decode); None takes it whole. Not a serving path: do not call it while requests are running.
        """
        size = chunk_tokens or len(prompt_ids)
        params = SamplingParams(prompt_logprobs=0)
        scratch = Sequence(next(self._ids), prompt_ids, params, tokenizer=self.tokenizer, max_tokens=1)
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
        return self.pool.block_map({item.id: item.request_id for item in list(self._live.values())})

    def stats(self) -> EngineStats:
        """Counters and gauges; safe to call from another thread."""
        slots = self.pool.slots()
        return EngineStats(
            backend=self.backend.name,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generated,
            forced_tokens_total=self._forced,
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
            spec_drafts_total=self._drafts,
            spec_draft_tokens_total=self._draft_tokens,
            spec_accepted_tokens_total=self._accepted,
            adapters=self.adapters.names,
        )

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter under a name that requests may ask for; between steps only."""
        self.adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        """Refuse an adapter to new requests; running ones keep it until they end. Between steps only."""
        self.adapters.unload(name, self._slots_in_use())

    # ── a step, in order ────────────────────────────────────────────────────────────────────────────────────────────

    def _draft(self) -> None:
        """Guess ahead for the sequences that are one token behind."""
        limit = self.settings.speculative_tokens
        for sequence in self.scheduler.running if limit else ():
            sequence.draft_ids = []
            room = min(limit, sequence.max_tokens - sequence.num_completion_tokens - 1)
            if sequence.owed == 1 and room > 0 and sequence.grammar is None and sequence.params.speculate:
                drafter = self._drafters.setdefault(sequence.id, NgramDrafter(limit))
                sequence.draft_ids = drafter.propose(sequence.token_ids, room)

    def _launch(self, chunks: list[Chunk]) -> _Flight:
        rows_in_flight = self._rows_in_flight()
        batch = lay_out(chunks, self.pool, rows_in_flight)
        if self.pool.copies:
            self.backend.copy_blocks(self.pool.copies)
            self.pool.copies.clear()
        due = [chunk.sequence for chunk in chunks if chunk.reaches_end and chunk.sequence.pooling is None]
        masks = {item.id: self._masks.submit(item.grammar.allowed) for item in due if item.grammar is not None}
        forward = self.backend.forward(batch)
        flight = _Flight(chunks)
        self._keep_hidden(flight, forward)
        rows = self._plan_draws(flight, forward)
        draws = [draw for sequence, count in flight.due for draw in self._draws(sequence, count, masks)]
        if draws:
            logits_RV, greedy_R = forward.logits_RV, forward.greedy_R
            if rows != list(range(logits_RV.shape[0])):
                index = torch.tensor(rows, device=logits_RV.device)
                logits_RV, greedy_R = logits_RV[index], None if greedy_R is None else greedy_R[index]
            flight.sampled = sample(logits_RV, draws, greedy_R)
            if self._overlaps:
                self.backend.remember(flight.sampled.ids_R)  # type: ignore[attr-defined]
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        flight.may_overlap = self._overlaps and not flight.embedded and all(map(self._is_blind, flight.due))
        return flight

    def _plan_draws(self, flight: _Flight, forward: Forward) -> list[int]:
        """Who is drawn for from which row of the logits; scores prompts on the way and forks further answers."""
        rows: list[int] = []
        at = 0
        for chunk in flight.chunks:
            sequence = chunk.sequence
            if sequence.pooling is not None:
                continue
            if sequence.params.prompt_logprobs is not None and sequence.wants_all_rows:
                self._score_prompt(sequence, chunk, forward.logits_RV[at : at + chunk.num_tokens])
                at += chunk.num_tokens - 1 if chunk.reaches_end else chunk.num_tokens
            if chunk.reaches_end:
                count = chunk.num_drafts + 1
                for answer in (sequence, *self._fork(sequence)):
                    flight.due.append((answer, count))
                    rows += range(at, at + count)
                at += count
        return rows

    def _fork(self, leader: Sequence) -> list[Sequence]:
        """The other answers to a prompt whose first token is due; they share its blocks where there are seats."""
        if leader.params.n == 1 or leader.index or leader.num_hidden_tokens or leader.forked:
            return []
        leader.forked = True
        children = []
        for index in range(1, leader.params.n):
            child = leader.fork(next(self._ids), index)
            self._live[child.id] = child
            if len(self.scheduler.running) < self.scheduler.max_num_seqs:
                self.pool.fork(leader.id, child.id)
                child.num_computed_tokens = leader.num_tokens
                self.scheduler.add_running(child)
            else:
                self.scheduler.add(child)
            children.append(child)
        return children

    def _draws(self, sequence: Sequence, count: int, masks: dict[int, Future[Any]]) -> list[Draw]:
        """What each of a sequence's rows is drawn with; row j stands after j drafts."""
        mask = masks.get(sequence.id)
        allowed = mask.result() if mask is not None else sequence.grammar.allowed() if sequence.grammar else None
        params = sequence.params
        has_history = params.has_penalty or params.min_tokens > 0
        prompt = sequence.token_ids[: sequence.num_prompt_tokens] if has_history else ()
        draws = []
        for ahead in range(count):
            answer = [*sequence.answer_ids, *sequence.draft_ids[:ahead]] if has_history else ()
            draws.append(
                Draw(
                    params=params,
                    uniform=sequence.uniform(ahead) if params.temperature > 0 else 0.0,
                    prompt_ids=prompt,
                    answer_ids=answer,
                    end_ids=self.tokenizer.eos_ids,
                    allowed=allowed,
                )
            )
        return draws

    def _is_blind(self, due: tuple[Sequence, int]) -> bool:
        """True if the next step of a sequence can be laid out before this one's token is known."""
        sequence, count = due
        params = sequence.params
        speculates = bool(self.settings.speculative_tokens) and params.speculate
        return count == 1 and sequence.grammar is None and not params.has_penalty and not speculates

    def _rows_in_flight(self) -> dict[int, int]:
        if self._flight is None:
            return {}
        return {sequence.id: row for row, (sequence, _) in enumerate(self._flight.due)}  # one row each: it overlaps

    def _leave_pending(self, flight: _Flight) -> None:
        for sequence, _ in flight.due:
            if sequence.id in self._live:
                sequence.token_ids.append(PENDING)

    def _land(self, flight: _Flight) -> list[Output]:
        """Read what a step drew and hand out what it added."""
        drawn = iter(flight.sampled.drawn() if flight.sampled is not None else ())
        outputs = []
        for sequence, count in flight.due:
            mine = list(itertools.islice(drawn, count))
            if sequence.id not in self._live:
                continue  # finished or aborted while this step was under way
            if sequence.is_pending:
                sequence.token_ids.pop()
            before = sequence.num_completion_tokens
            self._accept(sequence, mine)
            self._generated += sequence.num_completion_tokens - before
            outputs.append(sequence.take_output())
            if sequence.finish_reason is not None:
                self._drop(sequence)
        for sequence in flight.embedded:
            if sequence.id in self._live:
                sequence.finish_reason = "stop"
                outputs.append(sequence.take_output())
                self._drop(sequence)
        return outputs

    def _accept(self, sequence: Sequence, drawn: list[Drawn]) -> None:
        """Add the drawn token, and those drawn after drafts for as long as the drafts prove right."""
        drafts, sequence.draft_ids = sequence.draft_ids[: len(drawn) - 1], []
        accepted = 0
        for index, item in enumerate(drawn):
            self._advance(sequence, item)
            if sequence.finish_reason is not None or index == len(drafts) or item.token_id != drafts[index]:
                break
            accepted += 1
        if drafts:
            sequence.num_computed_tokens -= len(drafts) - accepted
            self.pool.settle(sequence.id, sequence.num_computed_tokens)
            self._drafters[sequence.id].learn(len(drafts), accepted)
            self._drafts += 1
            self._draft_tokens += len(drafts)
            self._accepted += accepted

    def _advance(self, sequence: Sequence, drawn: Drawn) -> None:
        """Add a sampled token and what the grammar forces after it, or finish the sequence."""
        params, token_id = sequence.params, drawn.token_id
        if token_id < 0:  # nothing was allowed, or the logits were no numbers
            sequence.finish_reason = "error"
            return
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
        if sequence.finish_reason is not None or sequence.pooling is not None:
            return
        if grammar is not None and grammar.error:
            sequence.finish_reason = "error"
        elif grammar is not None and grammar.complete:
            sequence.finish_reason = "stop"
        elif sequence.num_completion_tokens >= sequence.max_tokens:
            sequence.finish_reason = "length"

    # ── prompts that are scored or embedded ─────────────────────────────────────────────────────────────────────────

    def _score_prompt(self, sequence: Sequence, chunk: Chunk, logits_TV: torch.Tensor) -> None:
        """Log-probabilities of the prompt's tokens after each of a chunk's rows."""
        assert sequence.params.prompt_logprobs is not None
        targets = sequence.token_ids[chunk.start + 1 : chunk.start + 1 + chunk.num_tokens]
        if not sequence.scored:
            sequence.scored.append(None)
        found = score(logits_TV[: len(targets)], targets, sequence.params.prompt_logprobs)
        sequence.scored += [self._logprob(item) for item in found]

    def _keep_hidden(self, flight: _Flight, forward: Forward) -> None:
        """Gather the hidden states that an embedding is made of."""
        if forward.hidden_TK is None:
            return
        row = 0
        for chunk in flight.chunks:
            sequence, rows_TK = chunk.sequence, forward.hidden_TK[row : row + chunk.num_tokens]
            row += chunk.num_tokens
            if sequence.pooling is None:
                continue
            if sequence.pooling == "mean":
                total_K = rows_TK.double().sum(dim=0) / sequence.num_prompt_tokens
                earlier = torch.tensor(sequence.pooled or 0.0, dtype=torch.float64, device=total_K.device)
                sequence.pooled = (total_K + earlier).tolist()
            elif chunk.reaches_end:
                sequence.pooled = rows_TK[-1].tolist()
            if chunk.reaches_end:
                flight.embedded.append(sequence)

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────

    def _expire(self, sequence: Sequence) -> list[Output]:
        """The last words of a sequence whose time was up, and of the answers that it would have forked."""
        self._live.pop(sequence.id, None)
        self._drafters.pop(sequence.id, None)
        if sequence.is_pending:
            sequence.token_ids.pop()
        sequence.finish_reason = "deadline"
        outputs = [sequence.take_output()]
        if sequence.params.n > 1 and not sequence.index and not sequence.forked:
            for index in range(1, sequence.params.n):
                child = sequence.fork(next(self._ids), index)
                child.finish_reason = "deadline"
                outputs.append(child.take_output())
        return outputs

    def _drop(self, sequence: Sequence) -> None:
        self._live.pop(sequence.id, None)
        self._drafters.pop(sequence.id, None)
        self.scheduler.remove(sequence)
        if self.adapters.has_leaving:
            self.adapters.sweep(self._slots_in_use())

    def _slots_in_use(self) -> set[int]:
        return {item.adapter_slot for item in self._live.values()}

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

    def _logprob(self, drawn: Drawn) -> TokenLogprob | None:
        if drawn.logprob is None:
            return None
        token_bytes = self.tokenizer.token_bytes
        top = tuple(TopLogprob(token_id=id_, token=token_bytes(id_), logprob=value) for id_, value in drawn.top)
        return TokenLogprob(token_id=drawn.token_id, token=token_bytes(drawn.token_id), logprob=drawn.logprob, top=top)
