"""Who runs in this step, and with how many tokens. One rule: `num_computed_tokens` catches up with `num_tokens`.

Every sequence is owed the tokens it has but has not computed: a whole prompt at first, one token in decode, a few
after a grammar forced some. A step has one budget of tokens. Running sequences are served first, in order of arrival,
then new ones are admitted while there is budget and room; whoever does not fit gets the rest of its tokens in later
steps. So prompts are computed in chunks beside other sequences' decodes, and nothing here says "prefill" or "decode".
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from midwatch.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` uncomputed tokens of a sequence."""

    sequence: Sequence
    num_tokens: int

    @property
    def reaches_end(self) -> bool:
        """True if this chunk computes the last token, so that the next one can be sampled."""
        return self.sequence.num_computed_tokens + self.num_tokens == self.sequence.num_tokens


class Scheduler:
    """Waiting and running sequences, first come first served."""

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """True while any sequence is unfinished."""
        return bool(self.waiting or self.running)

    @property
    def num_unfinished(self) -> int:
        """Sequences waiting or running."""
        return len(self.waiting) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind the others."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Share out the budget. Admits waiting sequences; the caller computes every chunk before it asks again."""
        budget = self.max_num_batched_tokens
        chunks: list[Chunk] = []
        for sequence in self.running:
            owed = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            if owed:
                chunks.append(Chunk(sequence, owed))
                budget -= owed
        while self.waiting and budget and len(self.running) < self.max_num_seqs:
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            owed = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            chunks.append(Chunk(sequence, owed))
            budget -= owed
        return chunks

    def remove(self, request_id: int) -> Sequence | None:
        """Take out a finished or aborted sequence; None if there is none of that id."""
        for queue in (self.running, self.waiting):
            for sequence in queue:
                if sequence.id == request_id:
                    queue.remove(sequence)
                    return sequence
        return None
