"""A merged folder computes what base and adapter compute, rounded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import write_adapter
from safetensors import safe_open
from tuning_models import IDS, logits_of, make_model, write_gguf

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.errors import TuningError
from midwatch.tuning import identity
from midwatch.tuning.convert import convert
from midwatch.tuning.merge import merge, quantize_dequantize
from midwatch.tuning.model_folder import is_whole, provenance_of

# peft asks transformers under a name that it is to lose
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    source = write_gguf(request.param, make_model(request.param), folder / "base.gguf")
    return convert(source, folder / "base", name="pypi:base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", open_checkpoint(base).config, ranks={"q": 2}, use_rslora=True)
    identity.write(tmp_path / "adapter", base)
    return tmp_path / "adapter"


def with_peft(base: Path, adapter: Path):
    """transformers' model in float32 with the adapter, unmerged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(model, adapter).eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict


def test_a_merge_into_the_16_bit_base_rounds_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = with_peft(base, adapter).merge_and_unload().state_dict()
    found = tensors_of(merge(base, adapter, tmp_path / "out", how="16bit"))
    for name, values in found.items():
        off = (values.float() - merged[name]).abs()
        assert bool((off <= merged[name].abs() * 2**-8 + 1e-6).all()), name
        assert (values != merged[name].bfloat16()).float().mean() < 1e-3, name  # sums in another order, then rounded


def test_logits_are_those_of_base_and_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    expected = logits_of(with_peft(base, adapter), IDS)
    folder = merge(base, adapter, tmp_path / "out", how="16bit")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    off = (logits_of(model, IDS) - expected).abs().mean()
    moved = (logits_of(plain, IDS) - expected).abs().mean()
    assert off < moved / 20


def test_a_quantized_merge_adds_to_what_training_computed_with(base: Path, adapter: Path, tmp_path: Path) -> None:
    before = tensors_of(base)
    merged, plain = (tensors_of(merge(base, adapter, tmp_path / how, how=how)) for how in ("qdq", "16bit"))
    for name, values in before.items():
        shift = merged[name].float() - plain[name].float()
        if "proj.weight" in name:
            wanted = quantize_dequantize(values).float() - values.float()
            assert wanted.abs().max() > 0.005
            assert (shift - wanted).abs().max() < plain[name].abs().max() * 2**-6, name
        else:
            assert torch.equal(merged[name], values), name


def test_quantize_dequantize_is_what_a_4_bit_linear_holds() -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    held = Params4bit(weight, requires_grad=False, blocksize=64, compress_statistics=True, quant_type="nf4").to("cpu")
    assert torch.equal(dequantize_4bit(held.data, held.quant_state), quantize_dequantize(weight))


def test_the_folder_is_whole_and_says_where_it_came_from(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = merge(base, adapter, tmp_path / "out")
    assert is_whole(folder)
    found = provenance_of(folder)
    assert found["source"] == provenance_of(base)["source"]
    assert found["tokenizer"] == provenance_of(base)["tokenizer"]
    assert found["merged"]["how"] == "qdq"
    assert found["merged"]["adapter"] == "adapter"
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    with pytest.raises(TuningError, match="there already"):
        merge(base, adapter, folder)


def test_a_merged_folder_is_no_longer_the_adapter_s_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = merge(base, adapter, tmp_path / "out")
    with pytest.raises(TuningError, match="the hash of their tensors"):
        identity.check(adapter, folder)


def test_an_adapter_of_another_base_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    other = convert(write_gguf("qwen3", make_model("qwen3"), tmp_path / "o.gguf"), tmp_path / "o", name="pypi:other")
    write_adapter(tmp_path / "adapter", open_checkpoint(other).config)
    identity.write(tmp_path / "adapter", other)
    with pytest.raises(TuningError, match="trained on pypi:other and not on pypi:base"):
        merge(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_way_that_is_none_is_said(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="qdq or 16bit"):
        merge(base, adapter, tmp_path / "out", how="8bit")  # type: ignore[arg-type]
