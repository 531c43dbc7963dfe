"""The size of a KV block: what it wastes, predicted and measured, and what it costs in speed.

    python bench/paging.py [--rounds 5]

Claim: paging wastes half a block for each sequence. A sequence of L tokens leaves (-L) mod B slots of its last block
empty; over many lengths that is (B - 1) / 2 on average (Kwon et al., arXiv 2309.06180, section 4). Small blocks waste
less and share longer beginnings; large ones make shorter tables. The measured waste is read from the pool's own gauge
while sequences of random lengths are alive; the speed is decode at batch 8, sizes in turn, round by round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

from midwatch.engine.cores import spin_briefly

spin_briefly()  # before torch is imported, as the server does

from midwatch import results, settings  # noqa: E402
from midwatch.engine import hub  # noqa: E402
from midwatch.engine.blocks import BlockPool  # noqa: E402
from midwatch.engine.engine import Engine  # noqa: E402
from midwatch.engine.request import SamplingParams  # noqa: E402
from midwatch.settings import EngineSettings  # noqa: E402

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SEQUENCES = 400
PROMPT_TOKENS, NEW_TOKENS, BATCH = 200, 48, 8


def predict_waste(block_size: int) -> float:
    """Empty slots of a sequence, on average."""
    return (block_size - 1) / 2


def measure_waste(block_size: int, seed: int) -> tuple[float, float]:
    """(empty slots of a sequence, share of the held slots that is empty), read from the gauge."""
    chance = random.Random(seed)
    lengths = [chance.randint(100, 1024) for _ in range(SEQUENCES)]
    pool = BlockPool(sum(-(-length // block_size) for length in lengths), block_size, caching=False)
    for id_, length in enumerate(lengths):
        pool.admit(id_, ())
        assert pool.grow(id_, length)
    slots = pool.slots()
    return slots.empty / SEQUENCES, slots.empty / slots.allocated


def decode_tokens_per_s(engine: Engine, seed: int) -> float:
    """Tokens per second of eight sequences, once their prompts are computed."""
    chance = random.Random(seed)
    for _ in range(BATCH):
        prompt = [chance.randrange(1000, 40_000) for _ in range(PROMPT_TOKENS)]
        engine.add_request(prompt, SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True))
    first = 0
    while first < BATCH:
        first += sum(output.completion_tokens == 1 for output in engine.step())
    started, tokens = time.perf_counter(), 0
    while engine.has_work:
        tokens += sum(len(output.token_ids) for output in engine.step())
    return tokens / (time.perf_counter() - started)


def main() -> None:
    """Measure every size and write `results/engine/paging.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/engine/paging.json"))
    given = parser.parse_args()
    configured = settings.load()
    path = hub.resolve(configured.engine.model, configured.cache_dir)
    engines = {
        size: Engine.load(
            path,
            EngineSettings(block_size=size, kv_cache_mib=256, max_model_len=4096),
            kernel_dir=configured.kernel_dir,
        )
        for size in SIZES
    }
    waste: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    speed: dict[int, list[float]] = {size: [] for size in SIZES}
    for turn in range(given.rounds):
        for size in SIZES:
            waste[size].append(measure_waste(size, turn))
            speed[size].append(decode_tokens_per_s(engines[size], turn))
        print(f"round {turn + 1}: { ({size: round(values[-1]) for size, values in speed.items()}) }", flush=True)
    rows = []
    for size in SIZES:
        predicted, found = predict_waste(size), [empty for empty, _ in waste[size]]
        share = statistics.median(part for _, part in waste[size])
        rows.append(
            results.row(
                f"empty slots of a sequence, blocks of {size}",
                found,
                "slots",
                peer="predicted, (block - 1) / 2",
                peer_samples=[predicted] if predicted else (),
                target=1.1 * predicted + 0.05,
                direction="at_most",
                note="lengths of 100 to 1,024 tokens",
                extra={"share_of_held_slots": round(share, 4), "predicted": predicted},
            )
        )
    for size in SIZES:
        rows.append(
            results.row(
                f"decode at batch 8, blocks of {size}",
                speed[size],
                "tokens/s",
                peer="blocks of 16" if size != 16 else None,
                peer_samples=speed[16] if size != 16 else (),
                note=f"backend {engines[size].backend.name}; {PROMPT_TOKENS} prompt + {NEW_TOKENS} new tokens",
            )
        )
    results.write(given.out, rows, seed=0)
    print(results.table(rows))


if __name__ == "__main__":
    main()
