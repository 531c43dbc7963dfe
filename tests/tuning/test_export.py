"""An exported file holds the folder's model: its numbers, its tokens, its shape, under llama.cpp's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from adapters import write_adapter
from batches import all_logits
from tuning_models import FAMILIES, IDS, NASTY, logits_of, make_model, write_gguf

from midwatch.engine.checkpoint import open_checkpoint
from midwatch.engine.lora import read_adapter
from midwatch.engine.tokenizer import open_tokenizer
from midwatch.engine.transformer import TorchBackend
from midwatch.engine.weights import GGUF
from midwatch.errors import DownloadError, TuningError
from midwatch.settings import EngineSettings
from midwatch.tuning.convert import convert
from midwatch.tuning.export import export, export_adapter
from midwatch.tuning.gguf_tokenizer import split_name
from midwatch.tuning.model_folder import PROVENANCE

FLOAT32 = EngineSettings(dtype="float32", quantization="none")


def engine_logits(path: Path) -> torch.Tensor:
    checkpoint = open_checkpoint(path)
    found = all_logits(TorchBackend(checkpoint, FLOAT32, max_model_len=64, num_blocks=8), IDS)
    checkpoint.check_all_taken()
    return found


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A model, the GGUF file that was written without us, and its folder."""
    model, folder = make_model(request.param), tmp_path_factory.mktemp("family")
    source = write_gguf(request.param, model, folder / "source.gguf")
    return model, source, convert(source, folder / "folder", dtype="float32")


def test_a_file_that_went_both_ways_is_the_same(family, tmp_path: Path) -> None:
    _, source, folder = family
    again = export(folder, tmp_path / "again.gguf", kind="F32")
    one, other = gguf.GGUFReader(source), gguf.GGUFReader(again)
    before = {item.name: item.data for item in one.tensors}
    after = {item.name: item.data for item in other.tensors}
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert np.allclose(values, after[name], rtol=1e-6), name  # exact but for rope_freqs, which are computed
        assert name == "rope_freqs.weight" or np.array_equal(values, after[name]), name
    here, there = GGUF(source).metadata, GGUF(again).metadata
    for key, value in here.items():
        expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert there[key] == (expected if key != "general.license" else value.lower()), key
    tokenizer = {key for key in here if key.startswith("tokenizer.")}
    assert tokenizer == {key for key in there if key.startswith("tokenizer.")}
    assert all(here[key] == there[key] for key in tokenizer)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_the_engine_computes_what_the_rounded_numbers_say(family, tmp_path: Path, kind: str) -> None:
    model, _, folder = family
    path = export(folder, tmp_path / "out.gguf", kind=kind)
    found = {item.name: item for item in gguf.GGUFReader(path).tensors}
    assert found["blk.0.ffn_down.weight"].tensor_type.name == kind
    assert found["token_embd.weight"].tensor_type.name == ("Q8_0" if kind == "Q4_1" else kind)
    assert found["output_norm.weight"].tensor_type.name == "F32"
    again = convert(path, tmp_path / "again", dtype="float32")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(again, attn_implementation="eager").eval()
    assert (engine_logits(path) - logits_of(theirs, IDS)).abs().max() < 1e-4
    exact = torch.log_softmax(logits_of(model, IDS), -1)
    near = torch.log_softmax(engine_logits(path), -1)
    limit = {"F16": 1e-4, "BF16": 1e-2, "Q8_0": 1e-2, "Q4_1": 1.0}[kind]
    assert (exact.exp() * (exact - near)).sum(-1).mean() < limit


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
@pytest.mark.parametrize("bos", [False, True])
def test_a_plain_folder_is_recognised_by_its_tokenizer(tmp_path: Path, pre: str, bos: bool) -> None:
    source = write_gguf("llama", make_model("llama"), tmp_path / "source.gguf", pre=pre, bos=bos)
    folder = convert(source, tmp_path / "folder")
    (folder / PROVENANCE).unlink()
    exported = export(folder, tmp_path / "out.gguf", kind="BF16")
    metadata = GGUF(exported).metadata
    assert metadata["tokenizer.ggml.pre"] == pre
    assert metadata["tokenizer.ggml.token_type"] == [3, 3, 3] + [1] * 257
    assert metadata["tokenizer.ggml.add_bos_token"] is bos
    assert metadata["tokenizer.ggml.bos_token_id"] == 1
    assert metadata["tokenizer.ggml.eos_token_id"] == 2
    before, after = open_tokenizer(source), open_tokenizer(exported)
    for text in NASTY:
        assert before.encode(text) == after.encode(text), text
    turns = [{"role": "user", "content": "2 am?"}]
    assert before.chat_prompt(turns) == after.chat_prompt(turns)


def test_padding_added_words_and_a_plain_eos_are_kept(tmp_path: Path) -> None:
    from family_models import make_peer

    source = write_gguf("llama", make_model("llama"), tmp_path / "source.gguf")
    folder = convert(source, tmp_path / "folder")
    (folder / PROVENANCE).unlink()
    wide = tmp_path / "wide"
    make_peer("llama", vocab_size=264).save_pretrained(wide)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(folder / name, wide / name)
    found = json.loads((wide / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    found["added_tokens"].append({"id": 260, "content": "<think>", "special": False, **plain})
    (wide / "tokenizer.json").write_text(json.dumps(found))
    metadata = GGUF(export(wide, tmp_path / "out.gguf", kind="F32")).metadata
    assert metadata["tokenizer.ggml.tokens"][260:] == ["<think>", "[PAD261]", "[PAD262]", "[PAD263]"]
    assert metadata["tokenizer.ggml.token_type"][260:] == [4, 5, 5, 5]


def test_a_way_to_split_words_that_has_no_name_is_refused(tmp_path: Path) -> None:
    folder = convert(write_gguf("llama", make_model("llama"), tmp_path / "s.gguf"), tmp_path / "folder")
    (folder / PROVENANCE).unlink()
    found = json.loads((folder / "tokenizer.json").read_text())
    assert split_name(found, folder) == "smollm"
    found["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Punctuation", "behavior": "Isolated"})
    (folder / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(TuningError, match="none of smollm, gpt-2, llama-bpe and qwen2"):
        export(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_what_is_not_exported_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    from family_models import make_peer

    folder = convert(write_gguf("llama", make_model("llama"), tmp_path / "s.gguf"), tmp_path / "folder")
    target = tmp_path / "here" / "out.gguf"
    with pytest.raises(TuningError, match="Q8_0, Q4_1, F16, BF16, F32"):
        export(folder, target, kind="Q3_K")  # type: ignore[arg-type]
    with pytest.raises(TuningError, match="not a folder"):
        export(tmp_path / "s.gguf", target)
    make_peer("qwen2_windows").save_pretrained(tmp_path / "windows")
    with pytest.raises(TuningError, match="with windows"):
        export(tmp_path / "windows", target)
    odd = make_model("llama")
    odd.model.layers[1].mlp.up_proj.weight.data[3, 5] = 1e6
    odd.save_pretrained(tmp_path / "odd")
    shutil.copytree(folder, tmp_path / "all")
    shutil.copy(tmp_path / "odd" / "model.safetensors", tmp_path / "all" / "model.safetensors")
    with pytest.raises(TuningError, match=r"blk\.1\.ffn_up\.weight holds 1e\+06, which F16 cannot"):
        export(tmp_path / "all", target, kind="F16")
    assert list((tmp_path / "here").iterdir()) == []
    from midwatch.engine.download import Tools

    with pytest.raises(DownloadError, match="MB free"):
        export(folder, target, tools=Tools(free_bytes=lambda path: 10))
    export(folder, target)
    with pytest.raises(TuningError, match="there already"):
        export(folder, target)


def test_rows_that_no_block_fits_are_refused(tmp_path: Path) -> None:
    from family_models import make_peer

    source = write_gguf("llama", make_peer("llama", vocab_size=260, intermediate_size=48), tmp_path / "s.gguf")
    folder = convert(source, tmp_path / "folder")
    with pytest.raises(TuningError, match=r"ffn_down.weight has rows of 48 numbers; Q8_0 wants a multiple of 32"):
        export(folder, tmp_path / "out.gguf")
    export(folder, tmp_path / "out.gguf", kind="BF16")


@pytest.mark.parametrize("family_name", ["llama", "qwen2"])
def test_an_adapter_becomes_a_gguf_adapter(tmp_path: Path, family_name: str) -> None:
    source = write_gguf(family_name, make_model(family_name), tmp_path / "s.gguf")
    base = convert(source, tmp_path / "base", dtype="float32")
    config = open_checkpoint(base).config
    write_adapter(tmp_path / "adapter", config, ranks={"v": 2})
    reader = gguf.GGUFReader(export_adapter(tmp_path / "adapter", base, tmp_path / "adapter.gguf"))
    assert reader.fields["adapter.type"].contents() == "lora"
    tensors = {item.name: torch.from_numpy(np.array(item.data)) for item in reader.tensors}
    held = {item.name: torch.from_numpy(np.array(item.data)) for item in gguf.GGUFReader(source).tensors}
    pairs = read_adapter(tmp_path / "adapter", config, "it").pairs
    assert len(tensors) == 2 * len(pairs)
    # Added to the file's own numbers, it must give the file of the merged model: rows of q and k are interleaved alike.
    from midwatch.tuning.merge import merge

    merged = export(
        merge(base, tmp_path / "adapter", tmp_path / "merged", how="16bit"), tmp_path / "m.gguf", kind="F32"
    )
    for item in gguf.GGUFReader(merged).tensors:
        expected = held[item.name]
        if f"{item.name}.lora_a" in tensors:
            expected = expected + tensors[f"{item.name}.lora_b"] @ tensors[f"{item.name}.lora_a"]
        found = torch.from_numpy(np.array(item.data))
        assert torch.allclose(found, expected, rtol=2**-8, atol=1e-6), item.name
