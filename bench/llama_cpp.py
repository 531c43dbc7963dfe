"""llama.cpp beside us: its binaries, the two files it reads, and its own benchmark's figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


class LlamaCpp:
    """A folder with `llama-batched-bench`, `llama-server` and `llama-quantize`, and the model in two quantizations.

    `as_shipped` is the very file that we read. `requantized` is its Q4_0, made by `llama-quantize`: a lossier model
    that llama.cpp runs faster, since it repacks that type.
    """

    def __init__(self, folder: Path, model: Path, work: Path) -> None:
        self.folder = folder
        self.as_shipped = model
        self.requantized = self.quantize("Q4_0", work)

    def quantize(self, kind: str, work: Path) -> Path:
        """The model as another type, made once."""
        path = work / f"{self.as_shipped.stem}-{kind}.gguf"
        if not path.exists():
            command = [self.folder / "llama-quantize", "--allow-requantize", self.as_shipped, path, kind]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
        return path

    def batched_bench(
        self, model: Path, *, prompt: int, new: int, batches: tuple[int, ...], threads: int, context: int = 8192
    ) -> dict[int, tuple[float, float]]:
        """(prefill, decode) tokens per second by batch size."""
        arguments = {
            "-m": model,
            "-c": context,
            "-b": 2048,
            "-ub": 512,
            "-npp": prompt,
            "-ntg": new,
            "-npl": ",".join(map(str, batches)),
            "-t": threads,
            "-tb": threads,
            "--output-format": "jsonl",
        }
        command = [str(self.folder / "llama-batched-bench"), *(str(it) for pair in arguments.items() for it in pair)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {int(item["pl"]): (item["speed_pp"], item["speed_tg"]) for item in lines}
