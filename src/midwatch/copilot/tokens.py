"""How many tokens will a text take? An upper estimate that needs no tokenizer.

Measured against SmolLM2's own byte-pair encoder on log lines: at least the true count on more than 99 of 100 lines, and
about a fifth above it on average. Digits are single tokens there, which is what makes logs dear.
"""

from __future__ import annotations

import math
import re

_PIECES = re.compile(r"([A-Z]?[a-z]+)|([A-Z]+)|([0-9])|(\s+(?=[0-9]))|(\s\s+)|([!-~])|([^\x00-\x7f]+)")
_VOWEL = re.compile(r"[aeiouAEIOU]")


def estimate_tokens(text: str) -> int:
    """Upper estimate of a text's tokens (at least 1)."""
    total = 0.0
    for match in _PIECES.finditer(text):
        kind = match.lastindex
        length = match.end() - match.start()
        if kind == 1:
            odd = length <= 4 and _VOWEL.search(match.group()) is None
            total += length / 1.6 if odd and length > 1 else 1 + max(0, length - 4) / 2.5
        elif kind == 2:
            total += max(1.0, length / 1.6)
        elif kind == 7:
            total += len(match.group().encode("utf-8", "replace"))
        else:
            total += 1
    return math.ceil(total * 1.1) + 1
