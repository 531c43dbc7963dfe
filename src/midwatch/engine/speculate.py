"""Guess the next tokens from the text itself: where the last few stood before, what followed them may follow again.

Source: prompt lookup decoding, a draft without a draft model (Saxena 2023; Leviathan et al., arXiv 2211.17192, for why
checking drafts keeps the answer). Answers that quote a log copy long runs of it. A guess costs rows in a step that
streams the weights anyway, so it pays only where it often holds: the length of a draft doubles while whole drafts are
right and falls back when one is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

NGRAM = 3


class NgramDrafter:
    """Drafts for one sequence. `propose` is O(tokens added since the last call)."""

    def __init__(self, max_drafts: int) -> None:
        self.max_drafts = max_drafts
        self._length = max_drafts
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, token_ids: Ids[int], room: int) -> list[int]:
        """Up to `room` tokens that followed the last `NGRAM` tokens where they stood last."""
        last = len(token_ids)
        for end in range(max(self._indexed, NGRAM), last):  # n-grams that end before the last token
            self._ends[tuple(token_ids[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, last)
        found = self._ends.get(tuple(token_ids[last - NGRAM :])) if last >= NGRAM else None
        if found is None:
            return []
        return list(token_ids[found : found + min(self._length, room)])

    def learn(self, drafted: int, accepted: int) -> None:
        """Hear how many of a draft's tokens were right."""
        if accepted == drafted:
            self._length = min(2 * max(self._length, 1), self.max_drafts)
        else:
            self._length = max(1, accepted)
