"""Run the scheduler over imagined requests, without a model, and say in words what each step does and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from midwatch.engine.blocks import BlockPool
from midwatch.engine.memory import step_tokens
from midwatch.engine.request import SamplingParams
from midwatch.engine.scheduler import Scheduler
from midwatch.engine.sequence import Sequence as Answer
from midwatch.errors import SettingsError
from midwatch.settings import EngineSettings

MAX_TOKENS = 1 << 20
MAX_REQUESTS = 1000
_SPEC = re.compile(r"(?P<prompt>\d+)\+(?P<answer>\d+)(?:@(?P<step>\d+))?(?::(?P<priority>-?\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Imagined:
    """A request of so many prompt and answer tokens that arrives before a step (0 is the first)."""

    prompt_tokens: int
    answer_tokens: int
    arrives_at_step: int = 0
    priority: int = 0


def parse(spec: str) -> Imagined:
    """Read `PROMPT+ANSWER[@STEP][:PRIORITY]`, such as `500+20@3:-1`. Raises `SettingsError`."""
    found = _SPEC.fullmatch(spec)
    if found is None or not all(0 < int(found[part]) <= MAX_TOKENS for part in ("prompt", "answer")):
        raise SettingsError(
            f"{spec[:80]!r} is no request.",
            "Write PROMPT+ANSWER[@STEP][:PRIORITY], such as 500+20@3:-1, each of prompt and answer at least 1.",
        )
    return Imagined(
        prompt_tokens=int(found["prompt"]),
        answer_tokens=int(found["answer"]),
        arrives_at_step=int(found["step"] or 0),
        priority=int(found["priority"] or 0),
    )


def dry_run(requests: Sequence[Imagined], settings: EngineSettings, num_blocks: int) -> Iterator[str]:
    """Lines that tell each step: what happened to whom, then the budget that was used and the slots that are held.

    A request's rank counts a step as a second. Raises `SettingsError` for one that the pool cannot hold alone.
    """
    said: list[str] = []
    scheduler = Scheduler(
        BlockPool(num_blocks, settings.block_size, caching=settings.prefix_caching),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=step_tokens(settings, "native"),
        explain=said.append,
    )
    room = num_blocks * settings.block_size
    coming = []
    for id_, item in enumerate(requests[:MAX_REQUESTS], 1):
        if item.prompt_tokens + item.answer_tokens > room:
            raise SettingsError(
                f"Request {id_} needs {item.prompt_tokens + item.answer_tokens} slots; the pool has {room}.",
                "Give more blocks or shorter requests.",
            )
        coming.append((item, _answer(id_, item, settings.priority_ageing_s)))
    step = 0
    while coming or scheduler.has_work:
        for item, sequence in [pair for pair in coming if pair[0].arrives_at_step <= step]:
            coming.remove((item, sequence))
            scheduler.add(sequence)
            said.append(f"request {sequence.request_id} arrives with {item.prompt_tokens} tokens")
        plan = scheduler.schedule(float(step))
        for chunk in plan.chunks:
            sequence, due = chunk.sequence, chunk.reaches_end
            sequence.num_computed_tokens += chunk.num_tokens
            if due:
                sequence.append(0, None)
            if sequence.num_completion_tokens >= sequence.max_tokens:
                scheduler.remove(sequence)
                said.append(f"request {sequence.request_id} is done")
        if said:
            slots = scheduler.pool.slots()
            used = sum(chunk.num_tokens for chunk in plan.chunks)
            yield f"step {step}: {used} of {scheduler.max_num_batched_tokens} tokens computed; " + (
                f"{slots.used} slots used, {slots.empty} empty, {slots.shared} shared, {slots.cached} cached"
            )
            yield from (f"  {line}" for line in said)
            said.clear()
        step += 1


def _answer(id_: int, item: Imagined, ageing_s: float) -> Answer:
    return Answer(
        id_,
        [id_ * MAX_TOKENS % (1 << 30) + place for place in range(item.prompt_tokens)],  # nobody's beginning is equal
        SamplingParams(max_tokens=item.answer_tokens),
        tokenizer=_NoText(),
        max_tokens=item.answer_tokens,
        priority=item.priority,
        rank_s=item.arrives_at_step + item.priority * ageing_s,
    )


class _NoText:
    """Tokens without text."""

    control_ids: frozenset[int] = frozenset((0,))

    def token_bytes(self, token_id: int) -> bytes:
        return b""
