"""How far one model's next-token distribution is from another's, over answers that it was not taught.

KL(P ‖ Q) in nats a token, how often both would say the same token, and the largest difference of any logit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from midwatch import results
from midwatch.engine.tokenizer import Tokenizer
from midwatch.tuning.bootstrap import ratio
from midwatch.tuning.datasets import make
from midwatch.tuning.encoding import Encoded, encode

Logits = Callable[[list[int]], torch.Tensor]
"""Ids to logits after every one of them, [T, V] float32."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Per prompt: summed KL in nats, tokens of the answer, on how many both agree; over all the largest difference."""

    kl: list[float]
    tokens: list[int]
    same: list[int]
    largest: float

    def row(self, name: str, note: str = "") -> results.Row:
        """Mean KL a token with its 95 % bootstrap interval over prompts."""
        kl, same = ratio([self.kl], [self.tokens]), ratio([self.same], [self.tokens])
        assert kl is not None
        assert same is not None
        per_prompt = torch.tensor(self.kl) / torch.tensor(self.tokens)
        return results.Row(
            name=name,
            value=kl.value,
            unit="nats/token",
            interval=(kl.low, kl.high),
            runs=len(self.kl),
            note=note,
            extra={
                "interval_is": "95 % bootstrap over prompts",
                "median_prompt_kl": float(per_prompt.median()),
                "greedy_agreement": same.value,
                "greedy_agreement_low": same.low,
                "greedy_agreement_high": same.high,
                "largest_logit_difference": self.largest,
                "tokens": sum(self.tokens),
            },
        )


def held_out(tokenizer: Tokenizer, prompts: int, *, seed: int = 11) -> list[Encoded]:
    """Conversations that no training has seen, with the tokens of the answers marked."""
    return [encode(item, tokenizer) for item in make("pirate", prompts, seed=seed, split="heldout")]


def answers_of(logits: Logits, texts: Sequence[Encoded]) -> list[torch.Tensor]:
    """For every text the log-probabilities with which each token of its answers was drawn, [A, V]."""
    found = []
    for text in texts:
        counted = torch.tensor(text.counted)
        found.append(logits(list(text.ids))[:-1][counted[1:]].float())
    return found


def distance(exact: Sequence[torch.Tensor], near: Sequence[torch.Tensor]) -> Distance:
    """From the logits of `exact`, [A, V] for every prompt, to those of `near`."""
    kl, same, largest = [], [], 0.0
    for one, other in zip(exact, near, strict=True):
        p, q = torch.log_softmax(one.double(), -1), torch.log_softmax(other.double(), -1)
        kl.append(float((p.exp() * (p - q)).sum()))
        same.append(int((one.argmax(-1) == other.argmax(-1)).sum()))
        largest = max(largest, float((one - other).abs().max()))
    return Distance(kl=kl, tokens=[len(item) for item in exact], same=same, largest=largest)


def of_transformers(model: Any) -> Logits:
    """transformers' logits (peft's too)."""

    def logits(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(torch.tensor([ids])).logits[0].float()
        return found

    return logits


def load_transformers(folder: Path, dtype: torch.dtype, adapter: Path | None = None) -> Any:
    """A folder's model in one dtype, with an adapter unmerged if one is given (its weights stay float32)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).eval()
