"""How fast an engine is, beside how fast its memory lets it be.

A decode step reads every weight once and the keys and values of every sequence; divided by the step's time that is the
achieved bandwidth, and over what the memory can give it is the share of the roofline. `latency` times one batch of
equal requests, `throughput` many requests of given or random lengths. What it is not: a load test over HTTP
(`serving/http_benchmark.py`).
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from midwatch.engine.percentiles import Percentiles
from midwatch.engine.request import SamplingParams

if TYPE_CHECKING:
    from midwatch.engine.engine import Engine

CPU_PROBE_BYTES = 256 << 20
CUDA_PROBE_BYTES = 4 << 30
PROBE_S = 0.6


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What decode steps read, GB/s, beside what the memory gives. GB is 10⁹ bytes."""

    bytes_per_step: float
    achieved_gb_s: float
    bandwidth_gb_s: float

    @property
    def share(self) -> float:
        """Achieved over possible."""
        return self.achieved_gb_s / self.bandwidth_gb_s if self.bandwidth_gb_s else 0.0


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One batch of equal requests: times of the best round, and of every round's decode speed."""

    backend: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    prefill_tokens_per_s: float
    step_ms: Percentiles
    decode_tokens_per_s: float
    rounds_tokens_per_s: tuple[float, ...]
    roofline: Roofline


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Many requests, as fast as they go."""

    backend: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    seconds: float
    steps: int
    preemptions: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Percentiles
    e2e_ms: Percentiles
    roofline: Roofline


def latency(
    engine: Engine, *, batch: int, prompt_tokens: int, new_tokens: int, rounds: int = 3, bandwidth_gb_s: float = 0.0
) -> Latency:
    """Time `batch` equal requests, `rounds` times after a first that is not counted.

    Decode is timed from when every prompt is computed. Greedy, without an end-of-turn token and without a shared
    prefix. Raises `RequestError` if the context or the queue is too small for it.
    """
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True, speculate=False)
    prompts = random_prompts(engine, [prompt_tokens] * (batch * (rounds + 1)), seed=0)
    found = []
    for turn in range(rounds + 1):
        run = _one_batch(engine, prompts[turn * batch : (turn + 1) * batch], params)
        if turn:
            found.append(run)
    first_s, steps_s, tokens = max(found, key=lambda run: run[2] / max(sum(run[1]), 1e-9))
    stats = engine.stats()
    mean_length = prompt_tokens + new_tokens / 2
    per_step = stats.weight_bytes + batch * mean_length * stats.kv_bytes_per_token
    step_s = statistics.median(steps_s) if steps_s else 0.0
    return Latency(
        backend=stats.backend,
        batch=batch,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        ttft_ms=first_s * 1e3,
        prefill_tokens_per_s=batch * prompt_tokens / first_s,
        step_ms=Percentiles.of([step * 1e3 for step in steps_s]),
        decode_tokens_per_s=tokens / sum(steps_s) if steps_s else 0.0,
        rounds_tokens_per_s=tuple(run[2] / sum(run[1]) for run in found if run[1]),
        roofline=Roofline(
            bytes_per_step=per_step,
            achieved_gb_s=per_step / step_s / 1e9 if step_s else 0.0,
            bandwidth_gb_s=bandwidth_gb_s,
        ),
    )


def _one_batch(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> tuple[float, list[float], int]:
    """Seconds until every request has its first token; then seconds of each step, and the tokens that they made."""
    started = time.perf_counter()
    for prompt in prompts:
        engine.add_request(prompt, params)
    waiting_for = len(prompts)
    while waiting_for > 0:
        waiting_for -= sum(output.completion_tokens == len(output.token_ids) > 0 for output in engine.step())
    first_s = time.perf_counter() - started
    steps_s, tokens = [], 0
    while engine.has_work:
        before = time.perf_counter()
        tokens += sum(len(output.token_ids) for output in engine.step())
        steps_s.append(time.perf_counter() - before)
    return first_s, steps_s, tokens


def throughput(
    engine: Engine,
    *,
    requests: int,
    prompt_tokens: tuple[int, int],
    new_tokens: tuple[int, int],
    shared_prefix: int = 0,
    seed: int = 0,
    temperature: float = 0.0,
    bandwidth_gb_s: float = 0.0,
) -> Throughput:
    """Run `requests` with lengths drawn evenly between the two ends of each pair, the next as soon as one fits.

    `shared_prefix`: so many first tokens of every prompt are the same, and beyond them `prompt_tokens` come.
    """
    source = random.Random(seed)
    lengths = [source.randint(*prompt_tokens) for _ in range(requests)]
    budgets = [source.randint(*new_tokens) for _ in range(requests)]
    prefix = random_prompts(engine, [shared_prefix], seed=seed + 1)[0] if shared_prefix else []
    prompts = [[*prefix, *own] for own in random_prompts(engine, lengths, seed=seed)]
    before = engine.stats()
    run = _Run()
    started = time.perf_counter()
    waiting = [
        (prompt, SamplingParams(max_tokens=budget, ignore_eos=True, temperature=temperature, seed=number))
        for number, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
    ]
    waiting.reverse()
    places = engine.settings.max_num_seqs + engine.settings.max_waiting
    while waiting or engine.has_work:
        while waiting and run.in_flight < places:
            prompt, params = waiting.pop()
            run.begin(engine.add_request(prompt, params))
        run.take(engine)
    seconds = time.perf_counter() - started
    after = engine.stats()
    steps = after.steps_total - before.steps_total
    read = after.weight_bytes * steps + run.read_positions * after.kv_bytes_per_token
    return Throughput(
        backend=after.backend,
        requests=requests,
        prompt_tokens=run.prompt_tokens,
        cached_tokens=run.cached_tokens,
        new_tokens=run.new_tokens,
        seconds=seconds,
        steps=steps,
        preemptions=after.preemptions_total - before.preemptions_total,
        requests_per_s=requests / seconds,
        output_tokens_per_s=run.new_tokens / seconds,
        total_tokens_per_s=(run.prompt_tokens + run.new_tokens) / seconds,
        ttft_ms=Percentiles.of(run.ttft_ms),
        e2e_ms=Percentiles.of(run.e2e_ms),
        roofline=Roofline(
            bytes_per_step=read / max(steps, 1), achieved_gb_s=read / seconds / 1e9, bandwidth_gb_s=bandwidth_gb_s
        ),
    )


class _Run:
    """Requests in flight and what came of those before. A request's clock starts when it is handed to the engine."""

    def __init__(self) -> None:
        self._begun: dict[int, float] = {}
        self._spoken: set[int] = set()
        self.ttft_ms: list[float] = []
        self.e2e_ms: list[float] = []
        self.prompt_tokens = self.cached_tokens = self.new_tokens = self.read_positions = 0

    @property
    def in_flight(self) -> int:
        return len(self._begun)

    def begin(self, request_id: int) -> None:
        self._begun[request_id] = time.perf_counter()

    def take(self, engine: Engine) -> None:
        """One step."""
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            begun = self._begun[output.request_id]
            if output.request_id not in self._spoken:
                self._spoken.add(output.request_id)
                self.ttft_ms.append((now - begun) * 1e3)
            self.read_positions += output.prompt_tokens + output.completion_tokens
            if output.finish_reason is not None:
                self.e2e_ms.append((now - begun) * 1e3)
                self.prompt_tokens += output.prompt_tokens
                self.cached_tokens += output.cached_tokens
                self.new_tokens += output.completion_tokens
                del self._begun[output.request_id]


def random_prompts(engine: Engine, lengths: Sequence[int], *, seed: int) -> list[list[int]]:
    """Prompts of these lengths, of random ids that are no control tokens."""
    source = random.Random(seed)
    plain = sorted(set(range(engine.tokenizer.vocab_size)) - set(engine.tokenizer.control_ids))
    return [source.choices(plain, k=length) for length in lengths]


def measure_bandwidth_gb_s(device: torch.device, threads: int = 1, *, probe_bytes: int | None = None) -> float:
    """What the memory gives, GB/s: the best of half a second of reads (a sum, a matrix times a vector) and copies.

    A copy counts what it reads and what it writes.
    """
    cuda = device.type == "cuda"
    count = (probe_bytes or (CUDA_PROBE_BYTES if cuda else CPU_PROBE_BYTES)) // 4
    before = torch.get_num_threads()
    if not cuda:
        torch.set_num_threads(threads)
    try:
        values = torch.ones(max(count // 4096, 1), 4096, device=device)
        vector, other = torch.ones(4096, device=device), torch.empty_like(values)
        size = values.numel() * 4
        probes: list[tuple[Callable[[], torch.Tensor], int]] = [
            (functools.partial(torch.sum, values), size),
            (lambda: values @ vector, size),
            (lambda: other.copy_(values), 2 * size),
        ]
        return max(moved / _least_s(run, device, PROBE_S / len(probes)) / 1e9 for run, moved in probes)
    finally:
        torch.set_num_threads(before)


def _least_s(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time of as many runs as fit into so many seconds, after one that is not counted."""
    least, until = float("inf"), 0.0
    while not until or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if until:
            least = min(least, time.perf_counter() - started)
        else:
            until = time.perf_counter() + seconds
    return least
