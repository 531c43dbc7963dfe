"""Rotary settings of `config.json` from the divisors of the frequencies that a GGUF file holds, and back.

A GGUF file of Llama 3.1 holds one divisor for every pair of a head; `config.json` holds the four numbers that they were
made from (transformers, `_compute_llama3_parameters`). Three of the four matter only as ratios, so `low_freq_factor`
is taken to be 1, as Meta's is, and the others are fitted to the divisors and checked against every one of them.
"""

from __future__ import annotations

import math
from typing import Any

from midwatch.engine.checkpoint import ModelConfig
from midwatch.engine.safetensors_checkpoint import llama3_factors
from midwatch.errors import TuningError

TOLERANCE = 1e-4
_META = [(8.0, 4.0, 8192), (32.0, 4.0, 8192)]  # Llama 3.1 and 3.3; Llama 3.2
_LOW = 1.0


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a config. Raises `TuningError` for divisors that no setting makes."""
    base, divisors = config.layer_rope_bases[0], config.rope_factors
    if not divisors:
        return {"rope_theta": base, "rope_scaling": None}
    if max(divisors) - min(divisors) < TOLERANCE:
        return {"rope_theta": base, "rope_scaling": {"rope_type": "linear", "factor": divisors[0]}}
    candidates = [*_META, *_fitted(base, divisors)]
    for factor, high, context in candidates:
        made = llama3_factors(base, config.head_dim, factor=factor, low=_LOW, high=high, context=context)
        if all(math.isclose(one, other, rel_tol=TOLERANCE) for one, other in zip(made, divisors, strict=True)):
            scaling = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
            return {"rope_theta": base, "rope_scaling": scaling}
    raise TuningError(
        "The file scales its rotary positions in a way that config.json cannot say (neither linear nor Llama 3's).",
        "Fetch the model as a Hugging Face folder instead (midwatch models pull hf:ORG/NAME).",
    )


def _fitted(base: float, divisors: tuple[float, ...]) -> list[tuple[float, float, int]]:
    """Factor, high_freq_factor and original context from the pairs between both ends, if two of them are there.

    The share of a pair that is not scaled is (turns - low) / (high - low), and turns = context · frequency / 2π: a line
    through two points gives context / (high - low) and low / (high - low).
    """
    factor = max(divisors)
    points = [
        (base ** (-index / len(divisors)) / (2 * math.pi), (1 / divisor - 1 / factor) / (1 - 1 / factor))
        for index, divisor in enumerate(divisors)
    ]
    between = [(x, share) for x, share in points if 1e-3 < share < 1 - 1e-3]
    if len(between) < 2:
        return []
    (x0, y0), (x1, y1) = between[0], between[-1]
    slope = (y0 - y1) / (x0 - x1)
    offset = slope * x0 - y0
    if slope <= 0 or offset <= 0:
        return []
    span = _LOW / offset
    return [(round(factor, 4), round(_LOW + span, 3), round(slope * span))]
