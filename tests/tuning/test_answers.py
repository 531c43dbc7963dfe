"""The engine and peft through one port, over one tiny random base with two adapters: they say and score the same."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from adapters import write_adapter
from engine_models import write_tiny_gguf
from eval_kit import user

from midwatch.cli.tune_eval import EngineAnswerer, open_engine
from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.tokenizer import open_tokenizer
from midwatch.errors import ModelError, TuningError
from midwatch.settings import EngineSettings
from midwatch.tuning.answers import PeftAnswerer
from midwatch.tuning.convert import convert

SETTINGS = EngineSettings(
    threads=1, dtype="float32", quantization="none", kernels="torch", device="cpu", max_num_seqs=3, kv_cache_mib=1
)
QUESTIONS = [user("hi"), user("what is the time now?"), [{"role": "system", "content": "be brief"}, *user("go")]]
TEXTS = ["it is ten", "no", "a somewhat longer answer than that"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return convert(write_tiny_gguf(folder / "tiny.gguf"), folder / "hf", dtype="float32")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    config = open_checkpoint(base).config
    for seed in (0, 1):
        write_adapter(folder / str(seed), config, seed=seed)
    return {f"seed {seed}": folder / str(seed) for seed in (0, 1)}


@pytest.fixture(scope="module")
def engine(base: Path, adapters: dict[str, Path]) -> EngineAnswerer:
    return open_engine(base, adapters, SETTINGS, 1)


@pytest.fixture(scope="module")
def peft(base: Path, adapters: dict[str, Path]) -> PeftAnswerer:
    return PeftAnswerer(base, adapters, four_bit=False, batch=2)


VARIANTS = (None, "seed 0", "seed 1")


def test_every_variant_says_something_else(engine: EngineAnswerer, peft: PeftAnswerer) -> None:
    for answerer in (engine, peft):
        said = [answerer.answer(QUESTIONS, variant=variant, max_tokens=12) for variant in VARIANTS]
        assert all(len(answers) == len(QUESTIONS) for answers in said)
        assert len({tuple(answers) for answers in said}) == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_answer_does_not_depend_on_what_is_asked_beside_it(
    engine: EngineAnswerer, peft: PeftAnswerer, variant: str | None
) -> None:
    for answerer in (engine, peft):
        together = answerer.answer(QUESTIONS, variant=variant, max_tokens=8)
        alone = [answerer.answer([item], variant=variant, max_tokens=8)[0] for item in QUESTIONS]
        assert together == alone


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_engine_and_peft_score_a_text_alike(
    engine: EngineAnswerer, peft: PeftAnswerer, variant: str | None
) -> None:
    """peft computes in bfloat16, the engine here in float32."""
    ours = engine.likelihoods(QUESTIONS, TEXTS, variant=variant)
    theirs = peft.likelihoods(QUESTIONS, TEXTS, variant=variant)
    assert [item.tokens for item in ours] == [item.tokens for item in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=0.02)


def test_a_likelihood_is_that_of_the_answers_tokens_alone(base: Path, engine: EngineAnswerer) -> None:
    """Against the engine's own logits, one token after another."""
    tokenizer = open_tokenizer(base)
    prompt, answer = tokenizer.chat_prompt(QUESTIONS[1]), tokenizer.spell(TEXTS[0])
    logprobs = engine._engine.prompt_logits(prompt + answer).log_softmax(dim=-1)
    expected = -sum(float(logprobs[len(prompt) + at - 1, token]) for at, token in enumerate(answer))
    (found,) = engine.likelihoods([QUESTIONS[1]], [TEXTS[0]], variant=None)
    assert found.tokens == len(answer)
    assert found.nll == pytest.approx(expected, rel=1e-4)


def test_what_the_model_itself_says_is_likelier_than_anything_else(engine: EngineAnswerer) -> None:
    (said,) = engine.answer([QUESTIONS[0]], variant="seed 0", max_tokens=6)
    own, other = engine.likelihoods([QUESTIONS[0]] * 2, [said, "zebra"], variant="seed 0")
    assert own.nll / own.tokens < other.nll / other.tokens


def test_an_empty_text_costs_nothing(engine: EngineAnswerer, peft: PeftAnswerer) -> None:
    for answerer in (engine, peft):
        (found,) = answerer.likelihoods([QUESTIONS[0]], [""], variant=None)
        assert (found.nll, found.tokens) == (0, 0)


def test_no_answer_is_longer_than_asked_for(base: Path, engine: EngineAnswerer, peft: PeftAnswerer) -> None:
    tokenizer = open_tokenizer(base)
    for answerer in (engine, peft):
        for text in answerer.answer(QUESTIONS, variant=None, max_tokens=3):
            assert len(tokenizer.spell(text)) <= 3 * 3  # a byte that is no character becomes three


def test_many_more_prompts_than_seats_are_all_answered(engine: EngineAnswerer) -> None:
    prompts = [user(f"question {index}") for index in range(40)]
    answers = engine.answer(prompts, variant="seed 1", max_tokens=4)
    assert answers[7] == engine.answer([prompts[7]], variant="seed 1", max_tokens=4)[0]
    assert len(answers) == 40


def test_the_base_in_four_bits_is_near_the_base(base: Path, adapters: dict[str, Path], peft: PeftAnswerer) -> None:
    four_bit = PeftAnswerer(base, adapters)
    assert four_bit.description == "transformers and peft, NF4 with double quantization, cpu"
    ours = four_bit.likelihoods(QUESTIONS, TEXTS, variant="seed 0")
    whole = peft.likelihoods(QUESTIONS, TEXTS, variant="seed 0")
    for one, other in zip(ours, whole, strict=True):
        assert one.nll != other.nll
        assert math.isclose(one.nll, other.nll, rel_tol=0.25)


def test_an_adapter_of_other_shapes_is_refused(base: Path, tmp_path: Path, adapters: dict[str, Path]) -> None:
    config = dataclasses.replace(open_checkpoint(base).config, hidden_size=32)
    write_adapter(tmp_path / "adapter", config)
    with pytest.raises(TuningError, match="does not fit this base"):
        PeftAnswerer(base, {**adapters, "other": tmp_path / "adapter"}, four_bit=False)


def test_a_folder_without_weights_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        PeftAnswerer(tmp_path, {}, four_bit=False)
