"""A whole decoder on the backend against float64: families, paging, chunks, mixed steps, overlap, adapters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; these kernels are its")

from cuda_models import DEVICE, FAMILIES, LLAMA, MemoryCheckpoint, error, make_batch, reference

from midwatch.engine.batch import FROM_PREVIOUS
from midwatch.engine.cuda.backend import CudaBackend
from midwatch.engine.cuda.linear import FEW_ROWS
from midwatch.engine.lora import Adapter, LoraPair
from midwatch.errors import ModelError, SettingsError
from midwatch.settings import EngineSettings

# The interpreter's own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
SETTINGS = EngineSettings(dtype="float32", block_size=16, max_num_seqs=16, attention="triton")


def make(checkpoint: MemoryCheckpoint, **changes: object) -> CudaBackend:
    settings = SETTINGS.model_copy(update=changes)
    return CudaBackend(checkpoint, settings, max_model_len=128, num_blocks=24, device=DEVICE)


def tokens(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, LLAMA.vocab_size, count).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_uneven_chunks_over_scattered_blocks_gives_the_reference_logits(family: str) -> None:
    checkpoint = MemoryCheckpoint(FAMILIES[family])
    backend = make(checkpoint)
    prompt, blocks = tokens(45), [7, 2, 11]
    expected, hidden = reference(checkpoint, prompt)
    first = backend.forward(make_batch([(prompt[:21], 0, blocks)], 16)).logits_RV.clone()
    second = backend.forward(make_batch([(prompt, 21, blocks)], 16, want_hidden=True))
    assert error(torch.cat([first, second.logits_RV]), expected) < 1e-5
    assert error(second.hidden_TK, hidden[21:]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_sequences_of_unequal_length_gives_the_reference_logits(family: str) -> None:
    checkpoint = MemoryCheckpoint(FAMILIES[family])
    backend = make(checkpoint)
    prompts = [tokens(count, seed=count) for count in (1, 17, 40)]
    blocks = [[3], [9, 1], [4, 22, 0]]
    pieces = [(prompt[:-1], 0, table) for prompt, table in zip(prompts, blocks, strict=True) if len(prompt) > 1]
    backend.forward(make_batch(pieces, 16))
    batch = make_batch([(p, len(p) - 1, b) for p, b in zip(prompts, blocks, strict=True)], 16)
    out = backend.forward(batch)
    expected = torch.stack([reference(checkpoint, prompt)[0][-1] for prompt in prompts])
    assert error(out.logits_RV, expected) < 1e-5
    assert out.greedy_R is not None
    assert out.greedy_R.tolist() == expected.argmax(-1).tolist()


def test_more_sequences_than_the_fused_kernels_take_give_the_same_logits() -> None:
    checkpoint = MemoryCheckpoint(LLAMA)
    backend = make(checkpoint, max_num_seqs=24)
    firsts = tokens(FEW_ROWS + 1)
    out = backend.forward(make_batch([([first], 0, [block]) for block, first in enumerate(firsts)], 16))
    assert out.greedy_R is not None  # a decode step, not a chunk
    expected = torch.cat([reference(checkpoint, [first])[0] for first in firsts])
    assert error(out.logits_RV, expected) < 1e-5


def test_a_step_may_mix_chunks_and_single_tokens_and_ask_for_some_logits() -> None:
    checkpoint = MemoryCheckpoint(LLAMA)
    backend = make(checkpoint)
    long, short = tokens(70), tokens(9, seed=2)
    backend.forward(make_batch([(short[:-1], 0, [5])], 16))
    pieces = [(long, 0, [1, 2, 3, 4, 6]), (short, 8, [5])]
    out = backend.forward(make_batch(pieces, 16, logit_rows=[69, 70]))
    expected = torch.stack([reference(checkpoint, t)[0][-1] for t in (long, short)])
    assert error(out.logits_RV, expected) < 1e-5


def test_a_step_may_ask_for_no_logits_at_all() -> None:
    checkpoint = MemoryCheckpoint(LLAMA)
    backend = make(checkpoint)
    prompt = tokens(25)
    assert backend.forward(make_batch([(prompt[:24], 0, [1, 2])], 16, logit_rows=[])).logits_RV.shape[0] == 0
    out = backend.forward(make_batch([(prompt, 24, [1, 2])], 16))
    assert error(out.logits_RV, reference(checkpoint, prompt)[0][-1:]) < 1e-5


def test_an_id_that_is_not_known_yet_is_taken_from_the_step_before() -> None:
    checkpoint = MemoryCheckpoint(LLAMA)
    backend = make(checkpoint)
    prompt = tokens(20)
    backend.forward(make_batch([(prompt, 0, [1, 2])], 16))
    backend.remember(torch.tensor([3, 41, 8], device=DEVICE))
    known = make_batch([([*prompt, FROM_PREVIOUS], 20, [1, 2])], 16, previous_rows=np.array([1], dtype=np.int32))
    out = backend.forward(known)
    assert error(out.logits_RV, reference(checkpoint, [*prompt, 41])[0][-1:]) < 1e-5


def test_a_copied_block_serves_another_sequence() -> None:
    checkpoint = MemoryCheckpoint(LLAMA)
    backend = make(checkpoint)
    prompt = tokens(20)
    backend.forward(make_batch([(prompt[:19], 0, [1, 2])], 16))
    backend.copy_blocks([(1, 8), (2, 9)])
    backend.decoder.pool[:, :, 1:3] = 99.0
    out = backend.forward(make_batch([(prompt, 19, [8, 9])], 16))
    assert error(out.logits_RV, reference(checkpoint, prompt)[0][-1:]) < 1e-5


def test_a_block_may_hold_more_tokens_than_a_tile() -> None:
    checkpoint = MemoryCheckpoint(LLAMA)
    backend = make(checkpoint, block_size=96)
    prompt = tokens(120)
    expected, _ = reference(checkpoint, prompt)
    backend.forward(make_batch([(prompt[:-1], 0, [3, 1])], 96, logit_rows=[]))
    out = backend.forward(make_batch([(prompt, 119, [3, 1])], 96))
    assert error(out.logits_RV, expected[-1:]) < 1e-5


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.02), ("int4", 0.25)])
def test_quantized_weights_stay_near_and_are_the_same_by_every_path(quantization: str, bound: float) -> None:
    config = replace(LLAMA, hidden_size=256, intermediate_size=256, num_heads=4, num_kv_heads=2, head_dim=64)
    checkpoint = MemoryCheckpoint(
        replace(config, num_layers=1, rope_factors=(), layer_windows=(0,), layer_rope_bases=(1e4,))
    )
    backend = make(checkpoint, quantization=quantization)
    prompt = tokens(40)
    expected, _ = reference(checkpoint, prompt)
    many = backend.forward(make_batch([(prompt, 0, [1, 2, 3])], 16)).logits_RV
    assert 1e-4 < error(many, expected) < bound
    one = backend.forward(make_batch([(prompt, 39, [1, 2, 3])], 16)).logits_RV
    assert error(one, many[-1:]) < 1e-5
    few = backend.forward(make_batch([(prompt, 35, [1, 2, 3])], 16)).logits_RV
    assert error(few, many[35:]) < 1e-5


def adapter(seed: int, rank: int, layers: tuple[int, ...], names: tuple[str, ...]) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    width = {"q": 96, "k": 32, "v": 32, "o": 64, "gate": 96, "up": 96, "down": 64}
    inputs = {"o": 96, "down": 96}
    pairs = {
        (layer, name): LoraPair(
            a=torch.randn(rank, inputs.get(name, 64), generator=generator) * 0.1,
            b=torch.randn(width[name], rank, generator=generator) * 0.1,
        )
        for layer in layers
        for name in names
    }
    return Adapter(name=f"adapter {seed}", rank=rank, pairs=pairs)


def test_sequences_with_different_adapters_and_with_none_share_a_step() -> None:
    checkpoint = MemoryCheckpoint(LLAMA)
    backend = make(checkpoint, max_adapters=2)
    first = adapter(1, 4, (0, 1), ("q", "k", "v", "o", "gate", "up", "down"))
    second = adapter(2, 20, (1,), ("v", "up"))
    backend.load_adapter(0, first)
    backend.load_adapter(1, second)
    prompts = [tokens(30, seed=seed) for seed in (1, 2, 3)]
    chosen = [(1, second), (-1, None), (0, first)]
    slots = [slot for slot, _ in chosen]
    blocks = [[1, 2], [3, 4], [5, 6]]
    expected = [reference(checkpoint, p, a)[0] for p, (_, a) in zip(prompts, chosen, strict=True)]
    pieces = [(p[:-1], 0, b) for p, b in zip(prompts, blocks, strict=True)]
    out = backend.forward(make_batch(pieces, 16, adapters=slots, logit_rows=[5, 86])).logits_RV  # slot by slot
    assert error(out, torch.stack([expected[0][5], expected[2][28]])) < 1e-5
    pieces = [(p, 29, b) for p, b in zip(prompts, blocks, strict=True)]
    out = backend.forward(make_batch(pieces, 16, adapters=slots)).logits_RV  # 3 rows: gathered
    assert error(out, torch.stack([e[-1] for e in expected])) < 1e-5
    backend.unload_adapter(0)
    backend.load_adapter(0, second)
    backend.forward(make_batch([(prompts[0], 0, blocks[0])], 16, adapters=[0]))
    out = backend.forward(make_batch([(prompts[0], 29, blocks[0])], 16, adapters=[0])).logits_RV
    assert error(out, expected[0][-1:]) < 1e-5


def test_an_adapter_for_another_base_is_refused() -> None:
    backend = make(MemoryCheckpoint(LLAMA))
    wrong = Adapter(name="other", rank=4, pairs={(0, "q"): LoraPair(a=torch.zeros(4, 32), b=torch.zeros(96, 4))})
    with pytest.raises(ModelError, match="takes A \\[rank, 64\\]"):
        backend.load_adapter(0, wrong)


def test_a_block_size_that_is_no_multiple_of_16_is_refused() -> None:
    with pytest.raises(SettingsError, match="multiple of 16"):
        make(MemoryCheckpoint(LLAMA), block_size=24)


def test_closing_twice_is_fine() -> None:
    backend = make(MemoryCheckpoint(LLAMA))
    backend.close()
    backend.close()
