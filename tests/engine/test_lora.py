from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from adapters import MODULES, write_adapter
from batches import Part, all_logits, run
from family_models import FAMILIES, make_peer, write_family_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.engine.checkpoint import ModelConfig, open_checkpoint
from midwatch.engine.lora import read_adapter
from midwatch.engine.transformer import TorchBackend
from midwatch.errors import ModelError
from midwatch.settings import EngineSettings

TEXT = [int(token) for token in torch.randint(1, 128, (24,), generator=torch.Generator().manual_seed(5))]
REFERENCE = EngineSettings(dtype="float32", quantization="none", block_size=4)


def backend_of(path: Path) -> TorchBackend:
    return TorchBackend(open_checkpoint(path), REFERENCE, max_model_len=64, num_blocks=32)


def merged_logits(peer, tensors: dict[str, torch.Tensor], scale) -> torch.Tensor:
    """transformers' logits with W + scale · B A in place of W: the definition of LoRA."""
    merged = copy.deepcopy(peer)
    with torch.no_grad():
        for layer, block in enumerate(merged.model.layers):
            for linear, module in MODULES.items():
                prefix = f"base_model.model.model.layers.{layer}.{module}.lora_"
                if f"{prefix}A.weight" in tensors:
                    a, b = tensors[f"{prefix}A.weight"], tensors[f"{prefix}B.weight"]
                    block.get_submodule(module).weight += scale(linear, a.shape[0]) * (b @ a)
        return merged(torch.tensor([TEXT])).logits[0]


@pytest.fixture(scope="module")
def peer():
    return make_peer("llama")


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    peer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def config(folder: Path) -> ModelConfig:
    return open_checkpoint(folder).config


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_an_adapter_computes_what_merged_weights_do(family: str, tmp_path: Path) -> None:
    base = make_peer(family)
    base.save_pretrained(tmp_path / "base")
    backend = backend_of(tmp_path / "base")
    tensors = write_adapter(tmp_path / "adapter", backend.config)
    expected = merged_logits(base, tensors, lambda _, rank: 8 / rank)
    plain = all_logits(backend, TEXT)
    assert (expected - plain).abs().max() > 0.1, "an adapter that changes nothing would prove nothing"
    backend.load_adapter(3, read_adapter(tmp_path / "adapter", backend.config, "a"))
    assert_same(all_logits(backend, TEXT, adapter=3), expected)
    assert_same(all_logits(backend, TEXT, adapter=3, chunk=5), expected)
    assert_same(all_logits(backend, TEXT), plain)


def test_an_adapter_fits_the_same_base_read_from_gguf(peer, config: ModelConfig, tmp_path: Path) -> None:
    assert "llama" in FAMILIES
    backend = backend_of(write_family_gguf("llama", peer, tmp_path / "base.gguf"))
    tensors = write_adapter(tmp_path / "adapter", config, linears=("q", "k"))
    backend.load_adapter(0, read_adapter(tmp_path / "adapter", backend.config, "a"))
    assert_same(all_logits(backend, TEXT, adapter=0), merged_logits(peer, tensors, lambda _, rank: 8 / rank))


@pytest.mark.parametrize(
    ("written", "scale"),
    [
        ({"use_rslora": True}, lambda _, rank: 8 / math.sqrt(rank)),
        ({"alpha": 3}, lambda _, rank: 3 / rank),
        ({"ranks": {"v": 2, "down": 7}}, lambda _, rank: 8 / rank),
        ({"alpha_pattern": {"mlp.up_proj": 5}}, lambda linear, rank: (5 if linear == "up" else 8) / rank),
        ({"alpha_pattern": {"^model.layers.0.mlp.up_proj": 8}, "linears": ("v", "o")}, lambda _, rank: 8 / rank),
        ({"linears": ("gate",), "init_lora_weights": "gaussian"}, lambda _, rank: 8 / rank),
    ],
)
def test_ranks_and_scales_mean_what_peft_means(
    peer, folder: Path, config: ModelConfig, tmp_path: Path, written: dict, scale
) -> None:
    tensors = write_adapter(tmp_path, config, **written)
    backend = backend_of(folder)
    backend.load_adapter(0, read_adapter(tmp_path, config, "a"))
    assert_same(all_logits(backend, TEXT, adapter=0), merged_logits(peer, tensors, scale))


def test_sequences_of_one_step_use_different_adapters(peer, folder: Path, config: ModelConfig, tmp_path: Path) -> None:
    backend = backend_of(folder)
    expected = [all_logits(backend, TEXT)]
    for slot, linears in ((0, ("q", "v")), (5, tuple(MODULES))):
        tensors = write_adapter(tmp_path / str(slot), config, linears=linears, seed=slot)
        backend.load_adapter(slot, read_adapter(tmp_path / str(slot), config, str(slot)))
        expected.append(merged_logits(peer, tensors, lambda _, rank: 8 / rank))
    tables = [range(6), range(6, 12), range(12, 18), range(18, 24)]
    slots = [5, -1, 0, 5]
    run(
        backend,
        *(Part(token_ids=TEXT[:7], table=table, adapter=slot) for table, slot in zip(tables, slots, strict=True)),
    )
    together = run(
        backend,
        *(
            Part(token_ids=TEXT[7:end], table=table, start=7, adapter=slot)
            for table, slot, end in zip(tables, slots, (9, 24, 8, 20), strict=True)
        ),
    )
    assert_same(together, torch.stack([expected[2][8], expected[0][23], expected[1][7], expected[2][19]]))


def test_a_slot_can_be_emptied_and_filled_again(folder: Path, config: ModelConfig, tmp_path: Path) -> None:
    backend = backend_of(folder)
    write_adapter(tmp_path / "a", config, seed=1)
    write_adapter(tmp_path / "b", config, seed=2)
    backend.load_adapter(0, read_adapter(tmp_path / "b", config, "b"))
    expected = all_logits(backend, TEXT, adapter=0)
    backend.load_adapter(1, read_adapter(tmp_path / "a", config, "a"))
    backend.unload_adapter(1)
    backend.load_adapter(1, read_adapter(tmp_path / "b", config, "b"))
    assert torch.equal(all_logits(backend, TEXT, adapter=1), expected)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 8}, "shape"),
        ({"r": 0}, "whole number"),
        ({"r": 10**9}, "whole number"),
        ({"lora_alpha": "nan"}, "positive number"),
        ({"rank_pattern": {"(a+)+$": 3}}, "plain module names"),
        ({"rank_pattern": [1]}, "object"),
    ],
)
def test_what_is_not_run_is_refused_by_name(config: ModelConfig, tmp_path: Path, written: dict, why: str) -> None:
    write_adapter(tmp_path, config, **written)
    with pytest.raises(ModelError, match=why):
        read_adapter(tmp_path, config, "a")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.bias",
        "base_model.model.model.layers.77.self_attn.q_proj.lora_A.weight",
        "something",
    ],
)
def test_other_tensors_are_refused(config: ModelConfig, tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    tensors = write_adapter(tmp_path, config)
    save_file({**tensors, name: torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError):
        read_adapter(tmp_path, config, "a")


def test_an_adapter_for_another_base_is_refused(config: ModelConfig, tmp_path: Path, folder: Path) -> None:
    from dataclasses import replace

    wide, deep = replace(config, hidden_size=96), replace(config, num_layers=4)
    for name, other in (("wide", wide), ("deep", deep)):
        write_adapter(tmp_path / name, other)
        with pytest.raises(ModelError, match="trained on"):
            read_adapter(tmp_path / name, config, name)
        with pytest.raises(ModelError, match="Adapter"):
            backend_of(folder).load_adapter(0, read_adapter(tmp_path / name, other, name))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_change_of_bytes_can_crash_the_reader(
    config: ModelConfig, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed_adapter"
    write_adapter(path, config, linears=("q",))
    target = path / data.draw(st.sampled_from(["adapter_model.safetensors", "adapter_config.json"]))
    raw = bytearray(target.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, min(len(raw), 600)))
        raw[at : at + 2] = data.draw(st.binary(max_size=6))
    target.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, 9]))])
    try:
        read_adapter(path, config, "fuzzed")
    except ModelError as error:
        assert error.what


def test_a_missing_adapter_says_what_is_missing(config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="adapter_config.json"):
        read_adapter(tmp_path, config, "a")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    with pytest.raises(ModelError, match="adapter_model.safetensors"):
        read_adapter(tmp_path, config, "a")
