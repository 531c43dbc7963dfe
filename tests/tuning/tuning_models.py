"""Tiny random models with a tokenizer over bytes, as GGUF files, and the logits that transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from engine_models import CHATML, add_byte_tokenizer
from family_models import make_peer, write_family_gguf

FAMILIES = ("llama", "llama3", "llama3_untied", "qwen2", "qwen3")
VOCABULARY = 260
IDS = [int(token) for token in torch.randint(3, VOCABULARY, (48,), generator=torch.Generator().manual_seed(3))]
NASTY = (
    "hello world",
    "  a  b\n\n\n\tc 12345 3.14",
    "äöü ß 日本語 🚀👩‍🚀",
    "I'm you're WE'LL don’t",
    "\r\n\r\n x",
    "im_end |> <| im_start",
    "a" * 50,
    "x\x00\x01\x7f\u200b\ufeff",
    "   ",
    "def f(x):\n        return x**2",
    "٣٤٥ ½ ²",
    "e\u0301",
    "",
)


def make_model(family: str) -> Any:
    """transformers' model of a family over 260 tokens, float32; `llama3_untied` has its own head, as 8B has."""
    name, _, untied = family.partition("_")
    return make_peer(name, vocab_size=VOCABULARY, **({"tie_word_embeddings": False} if untied else {}))


def write_gguf(family: str, model: Any, path: Path, *, pre: str = "smollm", bos: bool = False) -> Path:
    """The model as a GGUF file with a tokenizer. `bos`: every text begins with `<|im_start|>`."""

    def more(writer: Any) -> None:
        add_byte_tokenizer(writer, CHATML, pre=pre)
        writer.add_bos_token_id(1)
        writer.add_add_bos_token(bos)
        writer.add_license("MIT")
        writer.add_name("Tiny")

    return write_family_gguf(family.partition("_")[0], model, path, more=more)


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    """[T, V] in float32."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].float()
    return found
