from __future__ import annotations

from pathlib import Path

import pytest
import torch
from batches import Part, all_logits, make_batch, run

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.transformer import TorchBackend
from midwatch.settings import EngineSettings

TEXT = [int(token) for token in torch.randint(3, 259, (45,), generator=torch.Generator().manual_seed(1))]
OTHER = [int(token) for token in torch.randint(3, 259, (45,), generator=torch.Generator().manual_seed(2))]


@pytest.fixture(scope="module")
def backend(tiny_path: Path) -> TorchBackend:
    settings = EngineSettings(dtype="float32", quantization="none", block_size=4)
    return TorchBackend(open_checkpoint(tiny_path), settings, max_model_len=64, num_blocks=64)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("chunk", [1, 3, 4, 17, 44])
def test_a_text_computed_in_chunks_gives_what_the_whole_gives(backend: TorchBackend, chunk: int) -> None:
    assert_same(all_logits(backend, TEXT, chunk=chunk, first_block=20), all_logits(backend, TEXT))


def test_blocks_may_lie_anywhere(backend: TorchBackend) -> None:
    whole = all_logits(backend, TEXT)
    scattered = [61, 3, 40, 4, 5, 60, 0, 33, 12, 50, 11, 25]
    first = run(backend, Part(token_ids=TEXT[:30], table=scattered, logits="all"))
    second = run(backend, Part(token_ids=TEXT[30:], table=scattered, start=30, logits="all"))
    assert_same(torch.cat([first, second]), whole)


def test_sequences_in_one_step_do_not_touch_each_other(backend: TorchBackend) -> None:
    alone = [all_logits(backend, TEXT[:20])[-1:], all_logits(backend, OTHER[:9])[-4:], all_logits(backend, OTHER)[-1:]]
    tables = [[9, 1, 8, 2, 7], [30, 31, 32], list(range(40, 52))]
    run(backend, Part(token_ids=OTHER[:5], table=tables[1]), Part(token_ids=OTHER[:44], table=tables[2]))
    together = run(
        backend,
        Part(token_ids=TEXT[:20], table=tables[0]),
        Part(token_ids=OTHER[5:9], table=tables[1], start=5, logits="all"),
        Part(token_ids=OTHER[44:], table=tables[2], start=44),
    )
    assert_same(together, torch.cat(alone))


def test_a_sequence_reads_blocks_that_another_writes_in_the_same_step(backend: TorchBackend) -> None:
    shared = TEXT[:8]
    expected = [all_logits(backend, TEXT[:12])[-1:], all_logits(backend, [*shared, *OTHER[:5]])[-1:]]
    backend._kv = type(backend._kv)(backend.config, torch.float32, backend.num_blocks, backend.block_size)
    together = run(
        backend,
        Part(token_ids=OTHER[:5], table=[5, 6, 20, 21], start=8),  # stands before the one that writes 5 and 6
        Part(token_ids=TEXT[:12], table=[5, 6, 7]),
    )
    assert_same(together, torch.cat([expected[1], expected[0]]))


def test_a_copied_block_may_be_written_without_touching_the_first(backend: TorchBackend) -> None:
    expected = [all_logits(backend, [*TEXT[:6], token])[-1:] for token in (7, 9)]
    run(backend, Part(token_ids=TEXT[:6], table=[1, 2]))
    backend.copy_blocks([(2, 3)])
    together = run(backend, Part(token_ids=[7], table=[1, 2], start=6), Part(token_ids=[9], table=[1, 3], start=6))
    assert_same(together, torch.cat(expected))


def test_hidden_states_are_what_the_head_multiplies(backend: TorchBackend) -> None:
    done = backend.forward(make_batch([Part(token_ids=TEXT[:10], table=[1, 2, 3])], 4, want_hidden=True))
    assert done.hidden_TK is not None and done.hidden_TK.shape == (10, 64)
    torch.testing.assert_close(backend._head(done.hidden_TK[-1:]), done.logits_RV)


def test_a_step_may_want_no_logits(backend: TorchBackend) -> None:
    assert run(backend, Part(token_ids=TEXT[:10], table=[1, 2, 3], logits="none")).shape == (0, 260)
