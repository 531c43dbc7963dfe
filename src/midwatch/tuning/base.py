"""A base by name: pulled, converted to a Hugging Face folder if it is a GGUF file, loaded in NF4 with an adapter.

NF4 with double quantization (Dettmers et al., arXiv 2305.14314, sections 3 and 4) by bitsandbytes; computing is in
bfloat16 on a CPU too, where dequantizing to float32 is about a hundred times slower.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from midwatch.engine import hub
from midwatch.errors import ModelError
from midwatch.tuning.convert import converted
from midwatch.tuning.recipe import LoraSection

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def find_base(name: str, cache_dir: Path) -> Path:
    """The Hugging Face folder of a base: fetched if it is not here yet, converted if it is a GGUF file.

    Raises `ModelError` for one that is missing, gated, damaged or of a kind that cannot be converted.
    """
    path = hub.pull(name, cache_dir).path
    folder = converted(path, cache_dir) if path.is_file() else path
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json, so it is no model to tune.", "Name a Hugging Face folder.")
    return folder


def quantization(*, sharded: bool = False) -> Any:
    """The settings of NF4 with double quantization; `sharded` stores it as bfloat16, which FSDP can cut."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16 if sharded else torch.uint8,
    )


def load_base(folder: Path, *, four_bit: bool, device: torch.device, sharded: bool = False) -> PreTrainedModel:
    """The base on one device, in NF4 or in bfloat16, its own weights frozen.

    Raises `ModelError` if the folder is damaged.
    """
    import bitsandbytes  # noqa: F401 - missed here by its name, and not by transformers in the middle of loading
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.bfloat16,
                quantization_config=quantization(sharded=sharded) if four_bit else None,
                device_map={"": device},
                local_files_only=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"{folder} cannot be loaded: {str(error)[:300]}", "Fetch or convert the base again."
        ) from error
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def with_adapter(model: PreTrainedModel, lora: LoraSection, *, seed: int) -> PeftModel:
    """A new adapter on the base: A drawn from `seed`, B zero, both float32. Only they can learn."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by names that transformers will drop
        return get_peft_model(model, config)
