"""The same weights, read and run by other people's code: the log-probabilities and the greedy text must agree."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from batches import all_logits
from engine_models import MakeEngine, answer

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.tokenizer import Tokenizer
from midwatch.engine.transformer import TorchBackend
from midwatch.settings import EngineSettings

PROMPTS = [
    "2026-11-23T03:12:44Z ERROR payment-api: connection pool exhausted (active=100, idle=0, waiting=37)",
    "The middle watch is kept from midnight until four in the morning, and",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
]


@pytest.fixture(scope="module")
def peer(smollm2_path: Path):
    """transformers' Llama with the numbers that the `gguf` package dequantizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        dtype="float32",
    )
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    state = {}
    for tensor in gguf.GGUFReader(smollm2_path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in ("attn_q", "attn_k"):  # GGUF interleaves the halves of each rotated pair; put them back
            values = values.reshape(-1, 32, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        target = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}.get(kind)
        if target is None:
            target = f"model.layers.{tensor.name.split('.')[1]}.{names[kind]}"
        state[f"{target}.weight"] = torch.from_numpy(np.array(values, dtype=np.float32))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_agree_within_a_ten_thousandth(smollm2_parts: tuple[Tokenizer, TorchBackend], peer, prompt: str) -> None:
    tokenizer, backend = smollm2_parts
    ids = tokenizer.encode(prompt)
    with torch.no_grad():
        theirs = peer(torch.tensor([ids])).logits[0]
    ours = all_logits(backend, ids)
    assert (ours - theirs).abs().max() < 1e-4


def test_greedy_text_is_the_same(smollm2: MakeEngine, peer) -> None:
    engine = smollm2()
    ids = engine.chat_prompt([{"role": "user", "content": "What is a database?"}])
    ours = answer(engine, ids, max_tokens=32)
    with torch.no_grad():
        theirs = peer.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
    assert ours.token_ids == theirs
    assert ours.text == engine.tokenizer.decode(theirs)


@pytest.mark.parametrize(("quantization", "limit"), [("auto", 0.01), ("int8", 0.02), ("none", 0.005)])
def test_the_quick_forms_stay_near_the_reference(
    smollm2_parts: tuple[Tokenizer, TorchBackend], smollm2_path: Path, quantization: str, limit: float
) -> None:
    tokenizer, reference = smollm2_parts
    settings = EngineSettings(quantization=quantization)
    quick = TorchBackend(open_checkpoint(smollm2_path), settings, max_model_len=128, num_blocks=8)
    ids = tokenizer.encode(PROMPTS[0] + "\n" + PROMPTS[1])
    exact = torch.log_softmax(all_logits(reference, ids), -1)
    for chunk in (0, 1):
        near = torch.log_softmax(all_logits(quick, ids, chunk=chunk), -1)
        divergence = (exact.exp() * (exact - near)).sum(-1).mean()
        assert divergence < limit, chunk
