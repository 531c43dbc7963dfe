"""llama.cpp beside us: its binaries, the two files it reads, and its own benchmark's figures."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from ports import free_port


class LlamaCpp:
    """A folder with `llama-batched-bench`, `llama-server` and `llama-quantize`, and the model in two quantizations.

    `as_shipped` is the very file that we read. `requantized` is its Q4_0, made by `llama-quantize`: a lossier model
    that llama.cpp runs faster, since it repacks that type.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.as_shipped = model
        self._work = Path(tempfile.gettempdir()) / "midwatch-bench"
        self._work.mkdir(exist_ok=True)
        self.requantized = self.quantize("Q4_0")

    def quantize(self, kind: str) -> Path:
        """The model as another type, made once."""
        path = self._work / f"{self.as_shipped.stem}-{kind}.gguf"
        if not path.exists():
            command = [self.folder / "llama-quantize", "--allow-requantize", self.as_shipped, path, kind]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
        return path

    @contextlib.contextmanager
    def server(
        self, model: Path, *, threads: int, context: int, slots: int = 1, more: Sequence[str] = ()
    ) -> Iterator[str]:
        """Its HTTP server over a file; gives the URL once it answers. `more`: further options."""
        port = free_port()
        options = ["-np", slots, "-c", context, "-t", threads, "-tb", threads, "--port", port, "--no-webui", *more]
        command = [str(self.folder / "llama-server"), "-m", str(model), *map(str, options)]
        url = f"http://127.0.0.1:{port}"
        with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                for _ in range(600):
                    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                        if answer.status == 200:
                            break
                    time.sleep(0.1)
                yield url
            finally:
                process.terminate()

    def logprobs(self, url: str, token_ids: list[int]) -> list[float]:
        """Log-probabilities of all tokens but the first, by its own kernels, one token after the other.

        A bias makes it draw the token that comes next; what it reports is the probability before any bias.
        """
        found = []
        for place in range(1, len(token_ids)):
            body = {
                "prompt": token_ids[:place],
                "n_predict": 1,
                "temperature": 0,
                "cache_prompt": True,
                "n_probs": 1,
                "logit_bias": [[token_ids[place], 1000.0]],
            }
            request = urllib.request.Request(
                f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                item = json.load(answer)["completion_probabilities"][0]
            assert item["id"] == token_ids[place], "the bias did not hold"
            found.append(item["logprob"])
        return found

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
