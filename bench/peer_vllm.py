"""vLLM on a CPU, in a virtual environment of its own: the same shapes, random weights. Prints one JSON object.

    /path/to/venv/bin/python bench/peer_vllm.py CONFIG_DIR [--rounds 5]

`CONFIG_DIR` holds a Hugging Face `config.json`; `bench/engine.py --vllm-python` writes it and runs this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

PROMPT_TOKENS, NEW_TOKENS = 64, 128


def main() -> None:
    """Time prefill and decode; decode is a run of 128 new tokens less a run of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    from vllm import LLM, SamplingParams

    model = LLM(
        given.config,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=16,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def run_s(sequences: int, prompt: int, new: int) -> float:
        prompts = [{"prompt_token_ids": [100 + index, *range(1000, 999 + prompt)]} for index in range(sequences)]
        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        model.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - started

    run_s(1, 512, 2)
    found: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        for size in (512, 1000):
            found.setdefault(f"prefill_{size}", []).append(size / run_s(1, size, 1))
        for batch in (1, 8, 16):
            whole, first = run_s(batch, PROMPT_TOKENS, NEW_TOKENS), run_s(batch, PROMPT_TOKENS, 1)
            found.setdefault(f"decode_{batch}", []).append(batch * (NEW_TOKENS - 1) / (whole - first))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
