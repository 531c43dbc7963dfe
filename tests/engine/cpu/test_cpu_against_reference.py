"""The C step computes what the PyTorch reference computes, up to int8 activations (about 1 %) and bfloat16 keys."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from batches import Part, all_logits, run
from cpu_models import FAMILIES, LLAMA, Make, RandomCheckpoint, random_adapter, relative_error, text

ERROR = 0.03  # of logits of a random model, whose layers amplify more than a trained one's


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_the_reference(make: Make, family: str) -> None:
    config = FAMILIES[family]
    checkpoint = RandomCheckpoint(config)
    ids = text(40, config)
    ours = all_logits(make.native(config, checkpoint), ids)
    theirs = all_logits(make.reference(config, checkpoint), ids)
    assert relative_error(ours, theirs) < ERROR


WIDE = dataclasses.replace(LLAMA, hidden_size=256, intermediate_size=256, num_heads=8, num_kv_heads=4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q6_K", "Q8_0", "BF16", "F32"])
@pytest.mark.parametrize("quantization", ["auto", "int8"])
def test_every_type_of_weights_agrees_with_the_reference(make: Make, kind: str, quantization: str) -> None:
    checkpoint = RandomCheckpoint(WIDE, kind, embedding="Q8_0")
    ids = text(30, WIDE)
    ours = all_logits(make.native(WIDE, checkpoint, quantization=quantization), ids)
    theirs = all_logits(make.reference(WIDE, checkpoint), ids)
    assert relative_error(ours, theirs) < ERROR


def test_parts_of_one_matrix_may_differ_in_type(make: Make) -> None:
    checkpoint = RandomCheckpoint(WIDE, "Q4_K", v="Q6_K", up="Q8_0", embedding="Q6_K")
    ids = text(30, WIDE)
    ours = all_logits(make.native(WIDE, checkpoint), ids)
    assert relative_error(ours, all_logits(make.reference(WIDE, checkpoint), ids)) < ERROR


def test_four_bits_on_request_stay_near_the_file(make: Make) -> None:
    checkpoint = RandomCheckpoint(WIDE, "Q8_0")
    ids = text(30, WIDE)
    ours = make.native(WIDE, checkpoint, quantization="int4")
    assert relative_error(all_logits(ours, ids), all_logits(make.reference(WIDE, checkpoint), ids)) < 0.35
    assert ours.weight_bytes < 0.7 * make.native(WIDE, checkpoint).weight_bytes


def test_keys_and_values_in_int8_stay_near_the_reference_and_take_half(make: Make) -> None:
    ids = text(60)
    ours = make.native(kv_dtype="int8")
    assert relative_error(all_logits(ours, ids), all_logits(make.reference(), ids)) < ERROR
    assert ours.kv_bytes_per_token == 2 * 2 * 2 * (32 + 4)
    assert torch.equal(all_logits(ours, ids, chunk=9), all_logits(make.native(kv_dtype="int8", block_size=5), ids))


def test_a_sliding_window_hides_what_lies_before_it(make: Make) -> None:
    config = dataclasses.replace(LLAMA, num_layers=1, layer_windows=(5,), layer_rope_bases=(10_000.0,))
    backend = make.native(config)
    one, other = text(30), [*text(20, seed=9), *text(30)[20:]]
    assert torch.equal(all_logits(backend, one)[24:], all_logits(backend, other)[24:])
    assert not torch.equal(all_logits(backend, one)[23], all_logits(backend, other)[23])


@pytest.mark.parametrize("family", ["llama", "gemma3", "odd widths", "qwen2"])
def test_an_adapter_gives_what_the_reference_gives(make: Make, family: str) -> None:
    config = FAMILIES[family]
    checkpoint = RandomCheckpoint(config)
    ours, theirs = make.native(config, checkpoint), make.reference(config, checkpoint)
    adapter = random_adapter(config)
    ours.load_adapter(2, adapter)
    theirs.load_adapter(2, adapter)
    ids = text(25, config)
    expected = all_logits(theirs, ids, adapter=2)
    assert relative_error(all_logits(ours, ids, adapter=2), expected) < ERROR
    assert relative_error(all_logits(ours, ids), expected) > 0.2


def test_rows_with_other_adapters_or_none_share_a_step(make: Make) -> None:
    backend = make.native()
    for slot in (0, 1):
        backend.load_adapter(slot, random_adapter(LLAMA, seed=slot, rank=3 + 5 * slot))
    ids = text(12)
    alone = [all_logits(backend, ids, adapter=slot)[-1:] for slot in (-1, 0, 1)]
    parts = [Part(token_ids=ids, table=[slot + 5], adapter=slot) for slot in (-1, 0, 1)]
    assert torch.equal(run(backend, *parts), torch.cat(alone))
    backend.unload_adapter(1)
    with pytest.raises(ValueError, match="adapter"):
        run(backend, parts[2])


def test_an_adapter_of_few_linears_changes_only_those(make: Make) -> None:
    checkpoint = RandomCheckpoint(LLAMA)
    ours, theirs = make.native(checkpoint=checkpoint), make.reference(checkpoint=checkpoint)
    for backend in (ours, theirs):
        backend.load_adapter(0, random_adapter(LLAMA, linears=("k", "up")))
    ids = text(25)
    assert relative_error(all_logits(ours, ids, adapter=0), all_logits(theirs, ids, adapter=0)) < ERROR


def test_the_likeliest_ids_are_those_of_the_logits(make: Make) -> None:
    from batches import make_batch

    backend = make.native()
    done = backend.forward(make_batch([Part(token_ids=text(40), table=range(3), logits="all")], 16))
    assert done.greedy_R is not None
    assert torch.equal(done.greedy_R, done.logits_RV.argmax(dim=1))


def test_the_lowest_of_equally_likely_ids_wins(make: Make) -> None:
    from batches import make_batch

    checkpoint = RandomCheckpoint(FAMILIES["untied"])
    head = checkpoint.tensor("head")
    head.blocks[:] = head.blocks[0]  # every id as likely as the first
    backend = make.native(FAMILIES["untied"], checkpoint, threads=2)
    done = backend.forward(make_batch([Part(token_ids=text(5), table=[0], logits="all")], 16))
    assert done.greedy_R is not None and done.greedy_R.tolist() == [0] * 5


def test_hidden_states_come_after_the_last_norm_with_logits_of_the_wanted_rows(make: Make) -> None:
    from batches import make_batch

    checkpoint = RandomCheckpoint(LLAMA)
    ours, theirs = make.native(checkpoint=checkpoint), make.reference(checkpoint=checkpoint)
    parts = [Part(token_ids=text(20), table=[1, 2]), Part(token_ids=text(7), table=[3], logits="none")]
    mine = ours.forward(make_batch(parts, 16, want_hidden=True))
    other = theirs.forward(make_batch(parts, 16, want_hidden=True))
    assert mine.hidden_TK is not None and other.hidden_TK is not None
    assert relative_error(mine.hidden_TK, other.hidden_TK) < ERROR
    assert torch.equal(mine.logits_RV, run(ours, *parts))


def test_a_step_may_want_no_logits(make: Make) -> None:
    assert run(make.native(), Part(token_ids=text(10), table=[1], logits="none")).shape == (0, 83)
