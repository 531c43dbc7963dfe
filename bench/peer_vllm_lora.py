"""vLLM on a CPU with a LoRA adapter, in a virtual environment of its own. Prints one JSON object.

    /path/to/venv/bin/python bench/peer_vllm_lora.py BASE ADAPTER PROMPTS.json --dtype float32 --new-tokens 24

`PROMPTS.json` holds lists of token ids; `bench/tuning_agreement.py --vllm-python` writes it and runs this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Greedy tokens of every prompt, with the adapter and without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rank", type=int, default=16, help="vLLM's --max-lora-rank")
    given = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams, __version__
    from vllm.lora.request import LoRARequest

    model = LLM(
        given.base,
        dtype=given.dtype,
        max_model_len=1024,
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        enable_lora=True,
        max_lora_rank=given.rank,
    )
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(given.prompts.read_text())]
    params = SamplingParams(max_tokens=given.new_tokens, temperature=0)
    found = {"version": __version__}
    for name, request in (("adapter", LoRARequest("pirate", 1, given.adapter)), ("base", None)):
        answers = model.generate(prompts, params, lora_request=request, use_tqdm=False)
        found[name] = [list(answer.outputs[0].token_ids) for answer in answers]
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
