"""What the C step promises through the whole engine: the same bits whatever else runs. On the real weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_models import Answer, MakeEngine, answer, answers

from midwatch.engine.cpu.build import why_unavailable
from midwatch.engine.engine import Engine
from midwatch.engine.request import SamplingParams
from midwatch.settings import EngineSettings

pytestmark = pytest.mark.skipif(why_unavailable(None) is not None, reason=str(why_unavailable(None)))

LOG = "2026-11-23T03:12:44Z ERROR payment-api: connection pool exhausted (active=100, idle=0, waiting=37)\n"


@pytest.fixture(scope="module")
def native(smollm2_path: Path) -> MakeEngine:
    """SmolLM2 on the C step, with settings of the test's choice."""

    def make(**settings: object) -> Engine:
        chosen = EngineSettings(threads=2, kernels="native", device="cpu", max_model_len=1024, **settings)
        return Engine.load(smollm2_path, chosen)

    return make


def requests(engine: Engine) -> list[tuple[list[int], SamplingParams]]:
    """Sixteen requests of unequal length, greedy and seeded, with log-probabilities."""
    made = []
    for index in range(16):
        ids = engine.tokenizer.encode(LOG * (1 + index % 4) + f"Question {index}: what is wrong?")
        heat = (0.0, 0.8, 1.2, 0.5)[index % 4]
        params = SamplingParams(max_tokens=10 + index, temperature=heat, seed=index, top_p=0.9, logprobs=2)
        made.append((ids, params))
    return made


def bits(made: Answer) -> tuple[object, ...]:
    """All that a caller can see of an answer, floats included."""
    return made.text, made.token_ids, [(item.logprob, item.top) for item in made.logprobs], made.last.finish_reason


@pytest.fixture(scope="module")
def alone(native: MakeEngine) -> list[tuple[object, ...]]:
    """Each request by itself, with nothing in the cache."""
    engine = native(prefix_caching=False)
    return [bits(answers(engine, [request])[0]) for request in requests(engine)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 48},
        {"prefix_caching": False, "block_size": 5},
        {"block_size": 64, "max_num_seqs": 3},
        {"kv_cache_mib": 24, "prefix_caching": False, "max_num_batched_tokens": 512},
    ],
    ids=["together", "in small chunks", "in blocks of five", "three at a time", "short of memory"],
)
def test_an_answer_is_the_same_to_the_bit(
    native: MakeEngine, alone: list[tuple[object, ...]], settings: dict[str, object]
) -> None:
    engine = native(**settings)
    assert engine.backend.name == "native"
    for _ in range(2):  # the second time over a warm prefix cache
        together = answers(engine, requests(engine))
        assert [bits(item) for item in together] == alone
    if "kv_cache_mib" in settings:
        assert engine.stats().preemptions_total > 0
    assert engine.stats().kv_slots_allocated == 0


def test_drafts_change_no_bit(native: MakeEngine) -> None:
    plain, drafting = native(), native(speculative_tokens=6)
    ids = plain.tokenizer.encode(LOG * 3 + LOG[:40])
    for heat in (0.0, 0.7):
        asked = {"max_tokens": 48, "temperature": heat, "seed": 1, "logprobs": 1, "ignore_eos": True}
        assert bits(answer(drafting, ids, **asked)) == bits(answer(plain, ids, **asked))
    assert drafting.stats().spec_accepted_tokens_total > 20


def test_a_second_thread_changes_no_bit(native: MakeEngine, smollm2_path: Path) -> None:
    two = native()
    one = Engine.load(smollm2_path, EngineSettings(threads=1, kernels="native", device="cpu", max_model_len=1024))
    some = requests(two)[:5]
    assert list(map(bits, answers(one, some))) == list(map(bits, answers(two, some)))


def test_the_text_is_sensible(native: MakeEngine) -> None:
    engine = native()
    ids = engine.chat_prompt([{"role": "user", "content": "Name three colours."}])
    text = answer(engine, ids, max_tokens=48).text.lower()
    assert sum(colour in text for colour in ("red", "blue", "green", "yellow", "orange", "purple")) >= 2, text
