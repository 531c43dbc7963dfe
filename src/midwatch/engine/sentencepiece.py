"""SentencePiece's kind of BPE: the adjacent pair whose joint token scores best is merged first, until none is left.

Source: Kudo and Richardson (arXiv 1808.06226), section 3.1; llama.cpp's `llm_tokenizer_spm` reads GGUF files the same
way. Spaces are spelled `▁`. A character without a token becomes its UTF-8 bytes, each a token of its own. Only ordinary
tokens can come of text: names of control tokens are spelled out, and so are user-defined tokens that hold more than
white space.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping

SPACE = "\u2581"


class SentencePieceEncoder:
    """Plain text to ids.

    `scores`: by ordinary token, best is highest. `ids`: by token. `byte_ids`: by byte, may be empty. `whole`: tokens
    of white space that are taken as they stand, the longest first. `unknown_id` stands for a character that has neither
    token nor bytes; None drops it. `space_prefix`: put a space before every run of text.
    """

    def __init__(
        self,
        *,
        scores: Mapping[str, float],
        ids: Mapping[str, int],
        byte_ids: Mapping[int, int],
        whole: Mapping[str, int],
        unknown_id: int | None,
        space_prefix: bool,
    ) -> None:
        self._scores = scores
        self._ids = ids
        self._byte_ids = byte_ids
        self._whole = whole
        self._unknown_ids = [] if unknown_id is None else [unknown_id]
        self._prefix = SPACE if space_prefix else ""
        longest_first = sorted(whole, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def __call__(self, text: str) -> list[int]:
        """The ids of a text."""
        if not text:
            return []
        parts = [text] if self._split is None else self._split.split(text)  # text, whole token, text, ...
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._whole[part])
            elif part:
                for piece in self._merge(self._prefix + part.replace(" ", SPACE)):
                    ids.extend(self._spell(piece))
        return ids

    def _merge(self, text: str) -> list[str]:
        """Merge the characters of a text, best pair first and the leftmost of equals."""
        pieces = list(text)
        count = len(pieces)
        before, after = list(range(-1, count - 1)), list(range(1, count + 1))
        heap: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            joined = pieces[left] + pieces[right]
            score = self._scores.get(joined)
            if score is not None:
                heapq.heappush(heap, (-score, left, right, len(joined)))

        for left in range(count - 1):
            offer(left, left + 1)
        while heap:
            _, left, right, length = heapq.heappop(heap)
            if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != length:
                continue  # one of the two has been merged since
            pieces[left] += pieces[right]
            pieces[right] = ""
            after[left] = after[right]
            if after[left] < count:
                before[after[left]] = left
                offer(left, after[left])
            if before[left] >= 0:
                offer(before[left], left)
        return [piece for piece in pieces if piece]

    def _spell(self, piece: str) -> list[int]:
        found = self._ids.get(piece)
        if found is not None:
            return [found]
        spelled = [self._byte_ids.get(byte) for byte in piece.encode("utf-8", "replace")]
        known = [token_id for token_id in spelled if token_id is not None]
        return known if len(known) == len(spelled) else self._unknown_ids
