from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from engine_models import MakeEngine, answer

from midwatch.engine.async_engine import AsyncEngine
from midwatch.engine.engine import Engine
from midwatch.engine.request import Output, SamplingParams
from midwatch.errors import ProviderError, RequestError

LONG = SamplingParams(max_tokens=200, ignore_eos=True)


@contextlib.asynccontextmanager
async def running(engine: Engine):
    served = AsyncEngine(engine)
    await served.start()
    try:
        yield served
    finally:
        await served.aclose()


async def collect(served: AsyncEngine, ids: list[int], params: SamplingParams) -> list[Output]:
    return [output async for output in served.generate(ids, params)]


async def test_many_callers_get_what_each_would_get_alone(tiny: MakeEngine) -> None:
    prompts = [[3 + index, 60, 90] for index in range(12)]
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=5)
    async with running(tiny(max_num_seqs=4)) as served:
        many = await asyncio.gather(*(collect(served, ids, params) for ids in prompts))
    for ids, outputs in zip(prompts, many, strict=True):
        alone = answer(tiny(), ids, max_tokens=10, temperature=1.0, seed=5)
        assert [token for output in outputs for token in output.token_ids] == alone.token_ids
        assert outputs[-1].finish_reason == alone.last.finish_reason


async def test_leaving_the_iterator_frees_the_request_within_one_step(tiny: MakeEngine) -> None:
    async with running(tiny()) as served:
        async with contextlib.aclosing(served.generate([5, 6], LONG)) as outputs:
            async for _ in outputs:
                break
        await until_idle(served)
        stats = served.stats()
        assert (stats.running, stats.waiting, stats.kv_slots_allocated, stats.aborted_total) == (0, 0, 0, 1)
        assert stats.generation_tokens_total < 200


async def test_cancelling_the_task_frees_the_request(tiny: MakeEngine) -> None:
    async with running(tiny()) as served:
        first = asyncio.Event()

        async def consume() -> None:
            async for _ in served.generate([5, 6], LONG):
                first.set()

        task = asyncio.create_task(consume())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(served)
        assert served.stats().aborted_total == 1
        assert await collect(served, [7], SamplingParams(max_tokens=2, ignore_eos=True))


async def until_idle(served: AsyncEngine) -> None:
    """A request that comes after an abort is answered only when the abort has been done."""
    await collect(served, [9], SamplingParams(max_tokens=1))


async def test_a_bad_request_is_refused_before_anything_is_computed(tiny: MakeEngine) -> None:
    async with running(tiny()) as served:
        with pytest.raises(RequestError):
            await collect(served, [], LONG)
        with pytest.raises(RequestError, match="schema"):
            await collect(served, [5], SamplingParams(json_schema={"type": "nothing"}))
        assert served.stats().steps_total == 0
        assert served.healthy


async def test_a_schema_is_served(tiny: MakeEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    async with running(tiny()) as served:
        outputs = await collect(served, [5], SamplingParams(json_schema=schema))
    assert "".join(output.text_delta for output in outputs) in ('{"ok": true}', '{"ok": false}')


async def test_one_request_too_many_is_a_429_and_room_comes_back(tiny: MakeEngine) -> None:
    async with running(tiny(max_num_seqs=1, max_waiting=2)) as served:
        held = [served.generate([5], LONG) for _ in range(3)]
        await asyncio.wait([asyncio.ensure_future(anext(held[0]))])
        others = [asyncio.create_task(anext(stream)) for stream in held[1:]]
        await asyncio.wait(others, timeout=0)  # lets both tasks take their place in the queue
        with pytest.raises(RequestError) as caught:
            await anext(served.generate([5], LONG))
        assert caught.value.status == 429
        await held[0].aclose()
        await asyncio.gather(*others)
        for stream in held[1:]:
            await stream.aclose()
        assert await collect(served, [5], SamplingParams(max_tokens=1))


class BreaksAtStep(Engine):
    """An engine whose third step fails, as a broken kernel would make it."""

    def step(self) -> list[Output]:
        if self.stats().steps_total == 2:
            raise ZeroDivisionError("kernel broke")
        return super().step()


async def test_a_step_that_fails_reaches_every_caller_and_shows(tiny: MakeEngine) -> None:
    whole = tiny()
    broken = BreaksAtStep(whole.tokenizer, whole.backend, whole.settings, whole.max_model_len)
    async with running(broken) as served:
        assert served.healthy
        results = await asyncio.gather(
            *(collect(served, [5, index + 3], LONG) for index in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, ProviderError) and "kernel broke" in str(result) for result in results)
        assert not served.healthy
        assert served.failure is not None
        with pytest.raises(ProviderError, match="kernel broke"):
            await collect(served, [5], LONG)


async def test_closing_ends_requests_in_flight_and_the_thread(tiny: MakeEngine) -> None:
    served = AsyncEngine(tiny())
    await served.start()
    stream = served.generate([5], LONG)
    await anext(stream)
    await served.aclose()
    with pytest.raises(ProviderError, match="closed"):
        async for _ in stream:
            pass
    await served.aclose()
    assert not served.healthy
    assert not any(thread.name == "midwatch-engine" for thread in threading.enumerate())
    with pytest.raises(ProviderError, match="not running"):
        await collect(served, [5], LONG)


async def test_an_engine_that_was_never_started_says_so(tiny: MakeEngine) -> None:
    with pytest.raises(ProviderError, match="not running"):
        await collect(AsyncEngine(tiny()), [5], LONG)
