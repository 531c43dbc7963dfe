"""What the backend refuses, and how it comes and goes."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import Part, all_logits, make_batch, run
from cpu_models import FAMILIES, LLAMA, Make, RandomCheckpoint, random_adapter, text

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.cpu.backend import CpuBackend
from midwatch.engine.tokenizer import Tokenizer
from midwatch.engine.transformer import TorchBackend
from midwatch.errors import ModelError
from midwatch.settings import EngineSettings

TEXT = (
    "The connection pool is exhausted because a deploy at 03:12 raised the number of workers to sixty four, and each "
    "of them holds a connection while it waits for the lock on the orders table. Restart them one at a time."
)
PART = Part(token_ids=text(10), table=[3])


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("token_ids", 83, "vocabulary"),
        ("token_ids", -1, "vocabulary"),
        ("positions", 256, "position"),
        ("positions", 4, "position"),
        ("slots", -1, "slot"),
        ("slots", 1 << 20, "slot"),
        ("starts", 3, "starts"),
        ("lengths", 5, "length"),
        ("block_tables", 1 << 20, "block"),
        ("block_tables", -1, "block"),
        ("logit_rows", 10, "logits"),
        ("adapters", 0, "adapter"),
        ("adapters", 99, "adapter"),
    ],
)
def test_a_batch_that_would_read_outside_memory_is_refused(make: Make, field: str, value: int, match: str) -> None:
    batch = make_batch([PART], 16)
    array = getattr(batch, field).copy()
    array.flat[-1] = value
    with pytest.raises(ValueError, match=match):
        make.native().forward(dataclasses.replace(batch, **{field: array}))


def test_an_array_of_another_kind_is_refused(make: Make) -> None:
    batch = make_batch([PART], 16)
    for wrong in (batch.token_ids.astype(np.int64), batch.token_ids[:-1], np.repeat(batch.token_ids, 2)[::2]):
        with pytest.raises(ValueError, match="int32"):
            make.native().forward(dataclasses.replace(batch, slots=wrong))


def test_a_head_size_that_16_does_not_divide_is_refused_with_a_way_out(make: Make) -> None:
    with pytest.raises(ModelError, match="16 divides.*engine.kernels to torch"):
        make.native(dataclasses.replace(LLAMA, head_dim=24))


def test_an_adapter_for_another_base_or_slot_is_refused(make: Make) -> None:
    backend = make.native()
    with pytest.raises(ModelError, match="another base"):
        backend.load_adapter(0, random_adapter(FAMILIES["odd widths"]))
    with pytest.raises(ModelError, match="max_adapters"):
        backend.load_adapter(8, random_adapter(LLAMA))


def test_a_replaced_adapter_leaves_nothing_behind(make: Make) -> None:
    one, other = make.native(), make.native()
    one.load_adapter(0, random_adapter(LLAMA, seed=1))
    for backend in (one, other):
        backend.load_adapter(0, random_adapter(LLAMA, seed=2, linears=("o",)))
    assert torch.equal(all_logits(one, text(9), adapter=0), all_logits(other, text(9), adapter=0))


def test_closing_twice_is_fine_and_a_closed_backend_says_so(make: Make) -> None:
    backend = make.native(threads=3)
    run(backend, PART)
    backend.close()
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        run(backend, PART)


def test_a_dropped_backend_ends_its_threads(make: Make) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    gc.collect()
    before = count()
    backend = make.native(threads=4)
    assert count() == before  # none before the first step
    run(backend, PART)
    assert count() == before + 3
    del backend
    gc.collect()
    assert count() == before


def test_logits_are_the_callers_until_the_next_step(make: Make) -> None:
    backend = make.native()
    first = backend.forward(make_batch([PART], 16)).logits_RV
    kept = first.clone()
    first.fill_(0)
    assert torch.equal(backend.forward(make_batch([PART], 16)).logits_RV, kept)


def test_larger_batches_than_the_settings_say_are_computed(make: Make) -> None:
    backend = make.native(max_num_seqs=1, max_num_batched_tokens=16)
    parts = [Part(token_ids=text(5), table=[index], logits="all") for index in range(8)]
    assert torch.equal(run(backend, *parts), all_logits(make.native(), text(5)).repeat(8, 1))


def test_a_pool_takes_memory_only_where_it_is_written(make: Make) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    backend = make.native(max_model_len=4096, num_blocks=100_000)
    run(backend, PART)
    assert backend.num_blocks * backend.block_size * backend.kv_bytes_per_token > 800_000_000
    assert resident_bytes() - before < 60_000_000
    for pool in backend._pools[:1]:
        pool[:] = 0
    assert resident_bytes() - before > 400_000_000
    del pool
    backend.close()
    assert resident_bytes() - before < 60_000_000


def test_stale_keys_that_are_no_numbers_do_not_reach_another_sequence(make: Make) -> None:
    expected = all_logits(make.native(), text(21))
    for block_size in (16, 6):
        backend = make.native(block_size=block_size)
        for pool in backend._pools:
            pool[:] = 0xFF  # every bfloat16 is NaN
        assert torch.equal(all_logits(backend, text(21)), expected)


def test_smollm2_agrees_with_the_reference(
    make: Make, smollm2_parts: tuple[Tokenizer, TorchBackend], smollm2_path: Path
) -> None:
    tokenizer, reference = smollm2_parts
    backend = CpuBackend(
        open_checkpoint(smollm2_path),
        EngineSettings(threads=1),
        max_model_len=2048,
        num_blocks=16,
        kernel_dir=make.kernel_dir,
    )
    ids = tokenizer.encode(TEXT)
    ours, theirs = (all_logits(one, ids).log_softmax(dim=1) for one in (backend, reference))
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=1).mean()
    assert divergence < 0.01  # nats per token; 0.0035 when this was written
    assert float((ours.argmax(1) == theirs.argmax(1)).float().mean()) > 0.9
    assert backend.weight_bytes == 96_436_224


def test_weights_are_kept_once(make: Make) -> None:
    backend = make.native(checkpoint=RandomCheckpoint(LLAMA))
    tied, untied = backend.weight_bytes, make.native(FAMILIES["untied"]).weight_bytes
    assert tied == untied  # 83 rows are padded to 96
    assert backend._model.head.segment[0].data == backend._model.embedding.segment[0].data
