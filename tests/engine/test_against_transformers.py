"""The same weights, read and run by other people's code: the log-probabilities and the greedy text must agree."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from engine_models import MakeEngine, answer

from midwatch.engine.engine import Engine
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
def test_log_probabilities_agree_within_a_thousandth(smollm2: MakeEngine, peer, prompt: str) -> None:
    engine = smollm2()
    ids = engine.tokenizer.encode(prompt)
    ours = torch.log_softmax(engine.prompt_logits(ids), -1)
    with torch.no_grad():
        theirs = torch.log_softmax(peer(torch.tensor([ids])).logits[0].float(), -1)
    assert (ours - theirs).abs().max() < 1e-3


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


def test_the_fast_default_stays_near_the_reference(smollm2: MakeEngine, smollm2_path: Path) -> None:
    reference = smollm2()
    fast = Engine.load(smollm2_path, EngineSettings(threads=1, max_model_len=512))
    ids = reference.tokenizer.encode(PROMPTS[0] + "\n" + PROMPTS[1])
    exact = torch.log_softmax(reference.prompt_logits(ids), -1)
    for chunk_tokens in (None, 1):
        quick = torch.log_softmax(fast.prompt_logits(ids, chunk_tokens), -1)
        divergence = (exact.exp() * (exact - quick)).sum(-1).mean()
        assert divergence < 0.02, chunk_tokens


def test_the_default_loads_quickly_and_decodes_with_four_bit_weights(smollm2_path: Path) -> None:
    engine = Engine.load(smollm2_path, EngineSettings(threads=1, max_model_len=512))
    ids = engine.chat_prompt([{"role": "user", "content": "Name three colours."}])
    text = answer(engine, ids, max_tokens=24).text
    assert len(text.split()) >= 3, text
