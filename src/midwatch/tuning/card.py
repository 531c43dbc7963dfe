"""The model card beside an adapter: what it is, what it was taught, by which recipe, and how to serve it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from midwatch.tuning.recipe import Recipe

if TYPE_CHECKING:
    from midwatch.tuning.training import RunSummary

_CARD = """---
base_model: {base}
library_name: peft
tags: [lora, {quantization}, midwatch]
---
# {name}

A LoRA adapter for `{base}`, trained by Midwatch with the recipe below.

| | |
|---|---|
| adapter | rank {rank}, alpha {alpha:g}, on {targets} |
| file | {megabytes:.1f} MB, bfloat16, peft's layout |
| base while training | {quantization} |
| data | `{source}`: {conversations:,} conversations, {tokens:,} tokens, {counted:,} of them counted; sha256 `{data}` |
| steps | {steps}, seed {seed} |
| loss | {first:.3f} at the first step, {last:.3f} over the last ten |
| took | {minutes:.1f} min of training at {rate:,.0f} tokens/s, peak memory {peak:.2f} GiB |

## Use it

```sh
midwatch tune eval {folder}            # base, prompted base and tuned, side by side
MIDWATCH_ENGINE__ADAPTERS='{{"{adapter}": "{folder}"}}' midwatch serve
vllm serve BASE --enable-lora --lora-modules {adapter}={folder} --max-lora-rank {rank}
```

## What it is not

It was taught a manner, or one narrow task, on generated conversations. It knows no more facts than its base, and is
wrong where its base is wrong. Measure it on your own prompts before you rely on it.

## Recipe

```toml
{recipe}```
"""


def write_card(folder: Path, recipe: Recipe, summary: RunSummary, data_sha256: str) -> None:
    """Write `README.md` into the adapter's folder."""
    text = _CARD.format(
        name=recipe.name,
        base=recipe.base,
        quantization="nf4" if recipe.four_bit else "bfloat16",
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        targets=", ".join(recipe.lora.targets),
        megabytes=summary.adapter_bytes / 1e6,
        source=recipe.data.source,
        conversations=summary.conversations,
        tokens=summary.tokens,
        counted=summary.counted_tokens,
        data=data_sha256[:16],
        steps=summary.steps,
        seed=recipe.training.seed,
        first=summary.first_loss,
        last=summary.last_loss,
        minutes=summary.training_s / 60,
        rate=summary.tokens_per_s,
        peak=summary.peak_bytes / 2**30,
        folder=folder.name,
        adapter=recipe.name.partition("-")[0],
        recipe=as_toml(recipe),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def as_toml(recipe: Recipe) -> str:
    """A recipe as TOML that reads back as the same recipe, every field written out."""
    values = recipe.model_dump(mode="json")
    lines = [f"{key} = {_literal(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for name, section in values.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_literal(value)}" for key, value in section.items())]
    text = "\n".join(lines) + "\n"
    assert Recipe(**tomllib.loads(text)) == recipe
    return text


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)
