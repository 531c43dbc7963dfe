"""One step on the backend: launch it, and land it once its results are there.

Between the two a sequence that was drawn for ends in a `PENDING` token. A backend that computes while we do not wait
is given the next step in that time; everywhere else a step lands before the next begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from midwatch.engine.batch import Backend, Forward, OverlappingBackend
from midwatch.engine.blocks import BlockPool
from midwatch.engine.growth import Growth
from midwatch.engine.layout import lay_out
from midwatch.engine.request import Output
from midwatch.engine.sampler import Draw, Drawn, Sampled, sample, score
from midwatch.engine.scheduler import Chunk, Scheduler
from midwatch.engine.sequence import PENDING, Sequence
from midwatch.engine.speculate import NgramDrafter
from midwatch.engine.tokenizer import Tokenizer


@dataclass(slots=True)
class Flight:
    """A step under way: who is drawn for (`count` rows each), and whose embedding it completes."""

    chunks: list[Chunk]
    due: list[tuple[Sequence, int]] = field(default_factory=list)
    embedded: list[Sequence] = field(default_factory=list)
    sampled: Sampled | None = None
    may_overlap: bool = False

    @property
    def row_of(self) -> dict[int, int]:
        """The row that draws for a sequence, by its id; a step that may overlap has one row each."""
        return {sequence.id: row for row, (sequence, _) in enumerate(self.due)}


class Runner:
    """Runs the scheduler's plans. `live` holds the unfinished sequences by id; `next_id` names forks."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        backend: Backend,
        scheduler: Scheduler,
        *,
        max_drafts: int,
        next_id: Callable[[], int],
    ) -> None:
        self.live: dict[int, Sequence] = {}
        self.growth = Growth(tokenizer)
        self._overlapping = backend if isinstance(backend, OverlappingBackend) else None
        self.num_generated = self.num_drafts = self.num_drafted_tokens = self.num_accepted_tokens = 0
        self._tokenizer = tokenizer
        self._backend = backend
        self._scheduler = scheduler
        self._pool: BlockPool = scheduler.pool
        self._max_drafts = max_drafts
        self._next_id = next_id
        self._drafters: dict[int, NgramDrafter] = {}
        self._masks = ThreadPoolExecutor(1, thread_name_prefix="midwatch-grammar")

    def close(self) -> None:
        """Stop the thread that computes grammar masks."""
        self._masks.shutdown(wait=True)

    def drop(self, sequence: Sequence) -> None:
        """Forget a finished or aborted sequence and free what it holds."""
        self.live.pop(sequence.id, None)
        self._drafters.pop(sequence.id, None)
        self._scheduler.remove(sequence)

    def draft(self) -> None:
        """Guess ahead for the sequences that are one token behind."""
        limit = self._max_drafts
        for sequence in self._scheduler.running if limit else ():
            sequence.draft_ids = []
            room = min(limit, sequence.max_tokens - sequence.num_completion_tokens - 1)
            if sequence.owed == 1 and room > 0 and sequence.grammar is None and sequence.params.speculate:
                drafter = self._drafters.setdefault(sequence.id, NgramDrafter(limit))
                sequence.draft_ids = drafter.propose(sequence.token_ids, room)

    def launch(self, chunks: list[Chunk], previous: Flight | None) -> Flight:
        """Start a step; `previous` is the one still under way, which draws the pending tokens of this one."""
        batch = lay_out(chunks, self._pool, previous.row_of if previous is not None else None)
        if self._pool.copies:
            self._backend.copy_blocks(self._pool.copies)
            self._pool.copies.clear()
        due = [chunk.sequence for chunk in chunks if chunk.reaches_end and chunk.sequence.pooling is None]
        masks = {item.id: self._masks.submit(item.grammar.allowed) for item in due if item.grammar is not None}
        forward = self._backend.forward(batch)
        flight = Flight(chunks)
        self._keep_hidden(flight, forward)
        rows = self._plan_draws(flight, forward)
        draws = [draw for sequence, count in flight.due for draw in self._draws(sequence, count, masks)]
        if draws:
            logits_RV, greedy_R = forward.logits_RV, forward.greedy_R
            if rows != list(range(logits_RV.shape[0])):
                index = torch.tensor(rows, device=logits_RV.device)
                logits_RV, greedy_R = logits_RV[index], None if greedy_R is None else greedy_R[index]
            flight.sampled = sample(logits_RV, draws, greedy_R)
            if self._overlapping is not None:
                self._overlapping.remember(flight.sampled.ids_R)
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        blind = not flight.embedded and all(map(self._is_blind, flight.due))
        flight.may_overlap = self._overlapping is not None and blind
        return flight

    def _plan_draws(self, flight: Flight, forward: Forward) -> list[int]:
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
            child = leader.fork(self._next_id(), index)
            self.live[child.id] = child
            if len(self._scheduler.running) < self._scheduler.max_num_seqs:
                self._pool.fork(leader.id, child.id)
                child.num_computed_tokens = leader.num_tokens
                self._scheduler.add_running(child)
            else:
                self._scheduler.add(child)
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
                    end_ids=self._tokenizer.eos_ids,
                    allowed=allowed,
                )
            )
        return draws

    def _is_blind(self, due: tuple[Sequence, int]) -> bool:
        """True if the next step of a sequence can be laid out before this one's token is known."""
        sequence, count = due
        params = sequence.params
        speculates = bool(self._max_drafts) and params.speculate
        return count == 1 and sequence.grammar is None and not params.has_penalty and not speculates

    def leave_pending(self, flight: Flight) -> None:
        """Let the sequences of a step end in the token that it will draw, so that the next step can be laid out."""
        for sequence, _ in flight.due:
            if sequence.id in self.live:
                sequence.token_ids.append(PENDING)

    def land(self, flight: Flight) -> list[Output]:
        """Read what a step drew and hand out what it added."""
        drawn = iter(flight.sampled.drawn() if flight.sampled is not None else ())
        outputs = []
        for sequence, count in flight.due:
            mine = list(itertools.islice(drawn, count))
            if sequence.id not in self.live:
                continue  # finished or aborted while this step was under way
            if sequence.is_pending:
                sequence.token_ids.pop()
            before = sequence.num_completion_tokens
            self._accept(sequence, mine)
            self.num_generated += sequence.num_completion_tokens - before
            outputs.append(sequence.take_output())
            if sequence.finish_reason is not None:
                self.drop(sequence)
        for sequence in flight.embedded:
            if sequence.id in self.live:
                sequence.finish_reason = "stop"
                outputs.append(sequence.take_output())
                self.drop(sequence)
        return outputs

    def _accept(self, sequence: Sequence, drawn: list[Drawn]) -> None:
        """Add the drawn token, and those drawn after drafts for as long as the drafts prove right."""
        drafts, sequence.draft_ids = sequence.draft_ids[: len(drawn) - 1], []
        accepted = 0
        for index, item in enumerate(drawn):
            self.growth.add(sequence, item)
            if sequence.finish_reason is not None or index == len(drafts) or item.token_id != drafts[index]:
                break
            accepted += 1
        if drafts:
            sequence.num_computed_tokens -= len(drafts) - accepted
            self._pool.settle(sequence.id, sequence.num_computed_tokens)
            self._drafters[sequence.id].learn(len(drafts), accepted)
            self.num_drafts += 1
            self.num_drafted_tokens += len(drafts)
            self.num_accepted_tokens += accepted

    def _score_prompt(self, sequence: Sequence, chunk: Chunk, logits_TV: torch.Tensor) -> None:
        """Log-probabilities of the prompt's tokens after each of a chunk's rows."""
        assert sequence.params.prompt_logprobs is not None
        targets = sequence.token_ids[chunk.start + 1 : chunk.start + 1 + chunk.num_tokens]
        if not sequence.scored:
            sequence.scored.append(None)
        found = score(logits_TV[: len(targets)], targets, sequence.params.prompt_logprobs)
        sequence.scored += [self.growth.logprob(item) for item in found]

    def _keep_hidden(self, flight: Flight, forward: Forward) -> None:
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
