"""An adapter becomes part of its base: W' = W + B A · scale, added in float32 and rounded once.

Which W? While QLoRA trains, the base is NF4: the adapter learns to sit on the rounded weights. `qdq` adds it to those
(quantized and dequantized as in training), `16bit` to the weights as the folder holds them. What they cost is measured
in `bench/tuning_merge.py`. peft's own merge rounds twice in 16 bits, and on an NF4 base it rounds the sum to NF4 again.
Source: Hu et al. (arXiv 2106.09685) section 4.1; Dettmers et al. (arXiv 2305.14314) section 3.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.download import Tools, need_space
from midwatch.engine.lora import read_adapter
from midwatch.engine.safetensors_checkpoint import open_files, read_json
from midwatch.errors import TuningError
from midwatch.tuning import identity
from midwatch.tuning.model_folder import TOKENIZER_FILES, TensorWriter, new_folder, provenance_of, write_json

if TYPE_CHECKING:
    import torch

How = Literal["qdq", "16bit"]
_LINEAR = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj\.weight")


def merge(base_dir: Path, adapter_dir: Path, target: Path, *, how: How = "qdq", tools: Tools | None = None) -> Path:
    """Write base and adapter as one folder `target`, in bfloat16, whole or not at all; returns `target`.

    One tensor at a time is in memory. Raises `TuningError` for an adapter of another base, a `how` that is none or a
    `target` that is there already, `ModelError` for what is damaged or not read, `DownloadError` for a full disk.
    """
    import torch

    if how not in get_args(How):
        raise TuningError(f"{how!r} is no way to merge.", f"Choose {' or '.join(get_args(How))}.")
    tools = tools or Tools()
    identity.check(adapter_dir, base_dir)
    adapter = read_adapter(adapter_dir, open_checkpoint(base_dir).config, adapter_dir.name)
    files, base = open_files(base_dir), provenance_of(base_dir)
    total_bytes = 2 * sum(math.prod(file.get_slice(name).get_shape()) for name, file in files.items())
    provenance: dict[str, Any] = {
        **{key: value for key, value in base.items() if key not in ("format", "files")},
        "dtype": "bfloat16",
        "merged": {"how": how, "adapter": adapter_dir.resolve().name, "adapter_sha256": _sha256(adapter_dir)},
    }
    with new_folder(target, provenance) as folder:
        need_space(folder, total_bytes, tools)
        for name in TOKENIZER_FILES:
            if (base_dir / name).is_file():
                shutil.copy(base_dir / name, folder / name)
        config = {key: value for key, value in read_json(base_dir / "config.json").items() if key != "torch_dtype"}
        write_json(folder / "config.json", {**config, "dtype": "bfloat16"})
        writer = TensorWriter(folder)
        for name, file in files.items():
            values: torch.Tensor = file.get_tensor(name)
            if found := _LINEAR.fullmatch(name):
                if how == "qdq":
                    values = quantize_dequantize(values)
                if pair := adapter.pairs.get((int(found[1]), found[2])):
                    values = values.float().addmm_(pair.b, pair.a)
            writer.add(name, values.to(torch.bfloat16))
            tools.progress("merging", writer.total_bytes, total_bytes)
        writer.close()
    return target


def quantize_dequantize(weight: torch.Tensor) -> torch.Tensor:
    """The numbers that a linear of this weight computes with while QLoRA trains it: NF4, double quantized, bfloat16."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight.to(torch.bfloat16), blocksize=64, compress_statistics=True, quant_type="nf4")
    values: torch.Tensor = dequantize_4bit(codes, state)
    return values


def _sha256(adapter_dir: Path) -> str:
    return hashlib.sha256((adapter_dir / "adapter_model.safetensors").read_bytes()).hexdigest()
