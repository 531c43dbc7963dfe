"""The plan's arithmetic against figures that are known, and against what a model holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from midwatch.errors import TuningError
from midwatch.tuning import loss, offload
from midwatch.tuning.plan import (
    CHUNK,
    GIB,
    LEAVING,
    ModelShape,
    adapter_parameters,
    check_room,
    footprint,
    plain_plan,
    plan,
    quant_state,
)
from midwatch.tuning.recipe import DataSection, LoraSection, Recipe, TrainingSection

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

LLAMA_3_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip


def recipe(**training: Any) -> Recipe:
    values = {"rows": 2, "row_tokens": 2048, **training}
    return Recipe(name="a", base="b", data=DataSection(source="pirate"), training=TrainingSection(**values))


def test_llama_3_8b_has_the_weights_that_it_is_known_for() -> None:
    shape = ModelShape.of(LLAMA_3_8B)
    assert shape.linear_weights == 6_979_321_856
    assert shape.linear_weights + shape.other_weights == 8_030_261_248
    assert adapter_parameters(shape, recipe()) == 20_971_520


def test_nf4_with_double_quantization_takes_4_127_bits() -> None:
    shape = ModelShape.of(LLAMA_3_8B)
    bits = (shape.linear_weights // 2 + quant_state(shape)) * 8 / shape.linear_weights
    assert bits == pytest.approx(4.127, abs=5e-4)


def test_llama_3_8b_fits_under_seven_and_a_half_gib_where_plain_peft_takes_sixteen() -> None:
    shape = ModelShape.of(LLAMA_3_8B)
    ours, plain = plan(shape, recipe(), "cuda"), plain_plan(shape, recipe(), "cuda")
    assert 6.5 < ours.total / GIB < 7.4
    assert 15.5 < plain.total / GIB < 17.5
    assert ours.rows()[-1][1] == sum(nbytes for _, nbytes in ours.rows()[:-1])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_checkpointing_and_fewer_tokens_take_less(device: Any) -> None:
    shape = ModelShape.of(LLAMA_3_8B)
    kept = plan(shape, recipe(gradient_checkpointing=False), device).total
    checkpointed = plan(shape, recipe(), device).total
    fewer = plan(shape, recipe(row_tokens=1024), device).total
    assert fewer < checkpointed < kept


def test_the_plan_knows_the_sizes_that_the_path_uses() -> None:
    assert CHUNK == loss.CHUNK
    assert LEAVING == offload.LEAVING


def test_a_plan_that_does_not_fit_names_both_figures() -> None:
    planned = plan(ModelShape.of(LLAMA_3_8B), recipe(), "cuda")
    check_room(planned, planned.total)
    with pytest.raises(TuningError, match=r"needs 6\.\d\d GiB .* has 4\.00 GiB free"):
        check_room(planned, 4 * GIB)


def test_a_config_without_a_needed_field_is_named() -> None:
    with pytest.raises(TuningError, match="intermediate_size"):
        ModelShape.of({name: value for name, value in LLAMA_3_8B.items() if name != "intermediate_size"})


def test_the_footprint_of_transformers_leaves_the_quant_state_out() -> None:
    """Bytes of a small model in NF4: ours counts them all, `get_memory_footprint` all but the scales."""
    import bitsandbytes
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    values = {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 256, "vocab_size": 200, "tie_word_embeddings": True,
    }  # fmt: skip
    model: Any = LlamaForCausalLM(LlamaConfig(**values)).to(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            packed = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
            packed.weight = bitsandbytes.nn.Params4bit(
                module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            ).to("cpu")
            model.set_submodule(name, packed)
    model.is_loaded_in_4bit = True
    small = recipe().model_copy(update={"lora": LoraSection(rank=4)})
    tuned: Any = get_peft_model(model, LoraConfig(r=4, target_modules=list(small.lora.targets)))
    shape = ModelShape.of(values)
    assert model.get_memory_footprint(return_buffers=False) == footprint(shape, small)
    states = [module.weight.quant_state for module in tuned.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    held = [
        part
        for state in states
        for part in (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    ]
    assert sum(part.numel() * part.element_size() for part in held) == pytest.approx(quant_state(shape), rel=0.02)
