"""The fast path against plain peft and transformers, on a random Llama of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from midwatch.tuning.fast import packed_loss, prepare
from midwatch.tuning.recipe import LINEARS

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it

VOCABULARY = 97


def tiny_model(family: str = "llama") -> Any:
    """A random peft model in float32 whose B matrices are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    kinds: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    config, kind = kinds[family]
    torch.manual_seed(0)
    model = kind(
        config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=128,
        )
    )
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(LINEARS)))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return tuned.train()


def packed_batch() -> tuple[dict[str, Tensor], list[list[int]]]:
    """Two rows of 24 tokens, and the lengths of their documents; the last of each row is padding."""
    lengths = [[7, 9, 5, 3], [11, 12, 1]]
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (2, 24), generator=draw)
    labels = torch.full((2, 24), -100)
    positions = torch.cat([torch.arange(n) for row in lengths for n in row]).view(2, 24)
    for row, sizes in enumerate(lengths):
        begin = 0
        for size in sizes[:-1]:
            labels[row, begin + 3 : begin + size] = ids[row, begin + 3 : begin + size]
            begin += size
    return {"input_ids": ids, "labels": labels, "position_ids": positions}, lengths


def plain_loss(model: Any, batch: dict[str, Tensor], lengths: list[list[int]]) -> Tensor:
    """The same by transformers alone: one document at a time."""
    total, count = torch.zeros(()), 0
    for row, sizes in enumerate(lengths):
        begin = 0
        for size in sizes:
            ids = batch["input_ids"][row : row + 1, begin : begin + size]
            labels = batch["labels"][row, begin + 1 : begin + size]
            if (labels != -100).any():
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
                total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
                count += int((labels != -100).sum())
            begin += size
    return total / count


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_loss_and_gradients_equal_those_of_one_document_at_a_time(family: str, checkpointing: bool) -> None:
    model = tiny_model(family)
    batch, lengths = packed_batch()
    expected = plain_loss(model, batch, lengths)
    expected.backward()
    plain = gradients(model)
    prepare(model, checkpointing=checkpointing)
    loss = packed_loss(model, batch)
    loss.backward()
    ours = gradients(model)
    torch.testing.assert_close(loss, expected)
    assert ours.keys() == plain.keys()
    assert len(ours) == 2 * 2 * len(LINEARS)
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


def in_nf4(model: Any) -> Any:
    """The same model with its frozen linears in NF4, computing in float32."""
    import bitsandbytes

    for module in list(model.modules()):
        linear = getattr(module, "base_layer", None)
        if linear is not None:
            packed = bitsandbytes.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type="nf4")
            packed.weight = bitsandbytes.nn.Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            ).to("cpu")
            module.base_layer = packed
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_base_in_nf4_gives_the_same_loss_and_gradients_too(checkpointing: bool) -> None:
    model = in_nf4(tiny_model())
    batch, lengths = packed_batch()
    expected = plain_loss(model, batch, lengths)
    expected.backward()
    plain = gradients(model)
    prepare(model, checkpointing=checkpointing)
    loss = packed_loss(model, batch)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-6)


def test_adapters_switched_off_and_on_again_are_noticed() -> None:
    model = tiny_model()
    batch, _ = packed_batch()
    prepare(model, checkpointing=False)
    tuned = packed_loss(model, batch)
    with model.disable_adapter():
        base = packed_loss(model, batch)
    assert abs((tuned - base).item()) > 1e-4
    torch.testing.assert_close(packed_loss(model, batch), tuned)


def test_saving_writes_the_adapter_as_before(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = tiny_model()
    prepare(model, checkpointing=False)
    packed_loss(model, packed_batch()[0]).backward()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 2 * 2 * len(LINEARS)


def test_num_items_divides_the_sum_instead_of_the_batchs_own_count() -> None:
    model = tiny_model()
    batch, _ = packed_batch()
    prepare(model, checkpointing=False)
    count = int((batch["labels"] != -100).sum())
    torch.testing.assert_close(packed_loss(model, batch, 2 * count) * 2, packed_loss(model, batch))


def test_a_label_at_a_rows_first_token_is_never_counted() -> None:
    model = tiny_model()
    batch, _ = packed_batch()
    prepare(model, checkpointing=False)
    before = packed_loss(model, batch)
    batch["labels"][:, 0] = 5
    torch.testing.assert_close(packed_loss(model, batch), before)


def test_generation_still_answers_as_before() -> None:
    model = tiny_model().eval()
    ids = torch.arange(12).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    before = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    prepare(model, checkpointing=False)
    after = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(before, after)
