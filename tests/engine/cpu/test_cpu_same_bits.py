"""A row's result does not depend on what else is computed, on where it lies, or on who computes it."""

from __future__ import annotations

import pytest
import torch
from batches import Part, all_logits, run
from cpu_models import FAMILIES, LLAMA, Make, random_adapter, text

TEXT = text(75)
OTHER = text(75, seed=2)


@pytest.fixture(scope="module")
def whole(make: Make) -> torch.Tensor:
    return all_logits(make.native(), TEXT)


@pytest.mark.parametrize("block_size", [1, 3, 16, 64, 256])
def test_the_size_of_a_block_changes_no_bit(make: Make, whole: torch.Tensor, block_size: int) -> None:
    backend = make.native(block_size=block_size)
    assert torch.equal(all_logits(backend, TEXT), whole)
    assert torch.equal(all_logits(backend, TEXT, chunk=7, first_block=1), whole)


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 17, 40])
def test_a_chunked_prompt_gives_the_bits_of_the_whole(make: Make, whole: torch.Tensor, chunk: int) -> None:
    assert torch.equal(all_logits(make.native(), TEXT, chunk=chunk, first_block=3), whole)


@pytest.mark.parametrize("family", ["gemma3", "odd widths", "one kv head"])
def test_every_family_gives_the_same_bits_in_chunks(make: Make, family: str) -> None:
    backend = make.native(FAMILIES[family])
    assert torch.equal(all_logits(backend, TEXT, chunk=11, first_block=3), all_logits(backend, TEXT, first_block=10))


def test_blocks_may_lie_anywhere(make: Make, whole: torch.Tensor) -> None:
    backend = make.native()
    table = [9, 1, 30, 4, 2]
    first = run(backend, Part(token_ids=TEXT[:30], table=table, logits="all"))
    second = run(backend, Part(token_ids=TEXT[30:], table=table, start=30, logits="all"))
    assert torch.equal(torch.cat([first, second]), whole)


def test_unequal_sequences_in_one_step_give_what_each_gives_alone(make: Make) -> None:
    backend = make.native()
    alone = [all_logits(backend, TEXT[:20])[-1:], all_logits(backend, OTHER[:9])[-4:], all_logits(backend, OTHER)[-1:]]
    tables = [[9, 1], [30], list(range(40, 45))]
    run(backend, Part(token_ids=OTHER[:5], table=tables[1]), Part(token_ids=OTHER[:74], table=tables[2]))
    together = run(
        backend,
        Part(token_ids=TEXT[:20], table=tables[0]),
        Part(token_ids=OTHER[5:9], table=tables[1], start=5, logits="all"),
        Part(token_ids=OTHER[74:], table=tables[2], start=74),
    )
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("count", [2, 13, 16, 17, 33, 50])
def test_a_decode_step_of_many_gives_what_each_gives_alone(make: Make, count: int) -> None:
    backend = make.native(max_model_len=512)
    prompts = [text(3 + index % 7, seed=index) for index in range(count)]
    alone = [all_logits(backend, prompt)[-1:] for prompt in prompts]
    for index, prompt in enumerate(prompts):
        run(backend, Part(token_ids=prompt[:-1], table=[index + 1]))
    parts = [
        Part(token_ids=prompt[-1:], table=[index + 1], start=len(prompt) - 1) for index, prompt in enumerate(prompts)
    ]
    assert torch.equal(run(backend, *parts), torch.cat(alone))


def test_two_sequences_may_share_blocks_that_one_of_them_writes_in_the_same_step(make: Make) -> None:
    backend = make.native(block_size=4)
    expected = [all_logits(backend, [*TEXT[:8], *OTHER[:5]])[-1:], all_logits(backend, TEXT[:12])[-1:]]
    fresh = make.native(block_size=4)
    together = run(
        fresh,
        Part(token_ids=OTHER[:5], table=[5, 6, 20, 21], start=8),  # stands before the one that writes 5 and 6
        Part(token_ids=TEXT[:12], table=[5, 6, 7]),
    )
    assert torch.equal(together, torch.cat(expected))


def test_a_copied_block_may_be_written_without_touching_the_first(make: Make) -> None:
    for kv_dtype in ("bfloat16", "int8"):
        backend = make.native(block_size=4, kv_dtype=kv_dtype)
        expected = [all_logits(backend, [*TEXT[:6], token], first_block=30)[-1:] for token in (7, 9)]
        run(backend, Part(token_ids=TEXT[:6], table=[1, 2]))
        backend.copy_blocks([(2, 3), (1, 2)])  # 2 is read before it is written
        run(backend, Part(token_ids=TEXT[:6], table=[1, 2]))
        together = run(backend, Part(token_ids=[7], table=[1, 2], start=6), Part(token_ids=[9], table=[1, 3], start=6))
        assert torch.equal(together, torch.cat(expected))


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_the_number_of_threads_changes_no_bit(make: Make, threads: int) -> None:
    config, adapter = FAMILIES["gemma3"], random_adapter(FAMILIES["gemma3"])
    results = []
    for count in (1, threads):
        backend = make.native(config, threads=count)
        backend.load_adapter(0, adapter)
        results.append((all_logits(backend, TEXT), all_logits(backend, TEXT, chunk=1, adapter=0)))
        backend.close()
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("window", [0, 1500])
def test_a_long_context_in_splits_gives_the_same_bits_chunked_and_whole(make: Make, window: int) -> None:
    import dataclasses

    config = dataclasses.replace(LLAMA, layer_windows=(window, 0))
    ids = text(2300)
    backend = make.native(config, max_model_len=2400, threads=2)
    first = run(backend, Part(token_ids=ids[:2280], table=range(150)))
    whole = run(backend, Part(token_ids=ids, table=range(150, 300), logits="all"))  # splits one after the other
    assert torch.equal(whole[2279:2280], first)
    ends = [run(backend, Part(token_ids=[ids[at]], table=range(150), start=at)) for at in range(2280, 2300)]
    assert torch.equal(torch.cat(ends), whole[2280:])  # splits apart
