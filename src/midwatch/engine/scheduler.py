"""Who runs in this step, and with how many tokens. One rule: computed tokens catch up with tokens.

Every sequence is owed the tokens it has but has not computed: a whole prompt at first, one token in decode, a few after
a grammar forced some or a draft was made. A step has one budget of tokens. So prompts are computed in chunks beside
other sequences' decodes, and nothing here says "prefill" or "decode".

**Rank.** Sequences are served in the order of arrival + priority · ageing: a request of priority 1 stands where one of
priority 0 would that came `ageing_s` later. Waiting longer therefore always wins in the end, and no rank ever changes.
**Memory.** A sequence that needs a block when none is free takes it from the last in rank, which gives up all its
blocks and waits; what it had computed is computed again when it comes back, or found, if its blocks are still known.
**Admission.** The first in rank that waits enters if a seat, budget and room for all its tokens are there, and if some
blocks (the watermark) stay free for those who run. It may push out the last in rank, but only one of lesser priority.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

from midwatch.engine.blocks import Block, BlockPool
from midwatch.engine.sequence import Sequence

FEW_TOKENS = 16
"""Who owes at most so many is in the middle of an answer; a prompt's chunk leaves them their part of the budget."""
SCORED_CHUNK = 128
"""Rows of a chunk whose logits are all wanted: they take four bytes of memory for each word of the vocabulary."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` uncomputed tokens of a sequence, drafts included, from position `start` on."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def reaches_end(self) -> bool:
        """True if this chunk computes the last token that is known, so that the next one can be sampled."""
        return self.start + self.num_tokens >= self.sequence.num_tokens

    @property
    def num_drafts(self) -> int:
        """How many of its tokens are drafts."""
        return max(0, self.start + self.num_tokens - self.sequence.num_tokens)


@dataclass(slots=True)
class Plan:
    """One step: what is computed, who was pushed out, and whose time was up before it began."""

    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    expired: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Waiting and running sequences, each in order of rank. `explain` hears every decision in words."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        watermark: float = 0.01,
        explain: Callable[[str], None] | None = None,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.watermark_blocks = int(watermark * pool.num_blocks)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_queried_tokens = self.num_hit_tokens = self.num_preempted = 0
        self._explain = explain

    @property
    def has_work(self) -> bool:
        """True while any sequence is unfinished."""
        return bool(self.waiting or self.running)

    @property
    def num_unfinished(self) -> int:
        """Sequences waiting or running."""
        return len(self.waiting) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind those that rank before it."""
        bisect.insort(self.waiting, sequence, key=_rank)

    def add_running(self, sequence: Sequence) -> None:
        """Seat a sequence that already has its blocks: a fork. There must be a seat."""
        assert len(self.running) < self.max_num_seqs, "no seat for a fork"
        bisect.insort(self.running, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take out a finished or aborted sequence and give back its blocks."""
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        self.pool.free(sequence.id)

    def schedule(self, now_s: float = 0.0) -> Plan:
        """Share out one step's budget. The caller computes every chunk before it asks again."""
        plan = Plan()
        self.pool.step += 1
        self._expire(plan, now_s)
        self._make_way(plan)
        num_preempted = len(plan.preempted)
        budget = self._serve_running(plan, self.max_num_batched_tokens)
        if len(plan.preempted) == num_preempted:  # else memory is short: nobody enters
            self._admit(plan, budget)
        return plan

    def _expire(self, plan: Plan, now_s: float) -> None:
        for sequence in [item for item in (*self.running, *self.waiting) if item.deadline_s <= now_s]:
            self.remove(sequence)
            plan.expired.append(sequence)
            self._say(sequence, "is out of time")

    def _make_way(self, plan: Plan) -> None:
        """Push out the last in rank where the first that waits has a better priority and cannot enter otherwise."""
        while self.waiting and self.running and self.waiting[0].priority < self.running[-1].priority:
            seat = len(self.running) < self.max_num_seqs
            if seat and self._room_for(self.waiting[0]) is not None:
                return
            first = self.waiting[0]
            self._say(first, f"needs {'room' if seat else 'a seat'} and is more urgent than the last in rank")
            self._preempt(self.running[-1], plan)

    def _serve_running(self, plan: Plan, budget: int) -> int:
        few = sum(item.owed for item in self.running if item.owed <= FEW_TOKENS)
        for sequence in list(self.running):
            if sequence not in self.running:
                continue  # pushed out by one that ranks before it
            owed = sequence.owed
            left = budget if owed <= FEW_TOKENS else min(budget, max(budget - few, 1))
            num_tokens = min(owed, left, SCORED_CHUNK if sequence.wants_all_rows else owed)
            if num_tokens <= 0:
                continue
            end = sequence.num_computed_tokens + num_tokens
            while not self.pool.grow(sequence.id, end):
                last = self.running[-1]
                self._say(sequence, "needs a block and none is free")
                self._preempt(last, plan)
                if last is sequence:
                    break
            else:
                budget -= num_tokens
                few -= owed if owed <= FEW_TOKENS else 0
                self._take(plan, sequence, num_tokens)
        for chunk in plan.chunks:
            self._register(chunk)
        return budget

    def _admit(self, plan: Plan, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            shared = self._room_for(sequence)
            if shared is None:
                self._say(sequence, f"waits for room: {self.pool.num_free} blocks are free")
                return
            self.waiting.pop(0)
            bisect.insort(self.running, sequence, key=_rank)
            sequence.num_computed_tokens = self.pool.admit(sequence.id, shared)
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed_tokens
                self.num_queried_tokens += sequence.num_tokens
                self.num_hit_tokens += sequence.num_computed_tokens
            self._say(sequence, f"enters; {sequence.num_computed_tokens} of its tokens are known")
            num_tokens = min(sequence.owed, budget, SCORED_CHUNK if sequence.wants_all_rows else budget)
            grown = self.pool.grow(sequence.id, sequence.num_computed_tokens + num_tokens)
            assert grown, "there was room a moment ago"
            budget -= num_tokens
            self._take(plan, sequence, num_tokens)
            self._register(plan.chunks[-1])

    def _room_for(self, sequence: Sequence) -> list[Block] | None:
        """The known blocks that a waiting sequence begins with, if the rest of its tokens has room; else None."""
        pool = self.pool
        known = [] if sequence.wants_all_rows else pool.matching(sequence.id, sequence.token_ids, sequence.namespace)
        revived = sum(block.holders == 0 for block in known)
        needed = pool.blocks_for(sequence.num_tokens) - len(known) + revived
        spare = self.watermark_blocks if self.running else 0
        return known if needed + spare <= pool.num_free else None

    def _take(self, plan: Plan, sequence: Sequence, num_tokens: int) -> None:
        plan.chunks.append(Chunk(sequence, sequence.num_computed_tokens, num_tokens))
        left = sequence.owed - num_tokens
        self._say(sequence, f"computes {num_tokens}" + (f" and still owes {left}" if left else ""))

    def _register(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        known = min(chunk.start + chunk.num_tokens, sequence.num_known_tokens)
        self.pool.register(sequence.id, sequence.token_ids, known, sequence.namespace)

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        self.running.remove(sequence)
        self.pool.free(sequence.id)
        sequence.preempt()
        self.add(sequence)
        plan.preempted.append(sequence)
        self.num_preempted += 1
        self._say(sequence, "gives up its blocks and waits")

    def _say(self, sequence: Sequence, what: str) -> None:
        if self._explain is not None:
            self._explain(f"request {sequence.request_id} {what}")


def _rank(sequence: Sequence) -> tuple[float, int]:
    return sequence.rank
